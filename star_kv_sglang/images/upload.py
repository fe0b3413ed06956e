"""How features of a new screenshot reach the GPU: from pinned memory, and without a copy back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch


def require_whole(items: Iterable[Any], dtype: torch.dtype) -> None:
    """Make sure that no feature was rounded to another type than the vision tower's.

    Args:
        items: SGLang's ``MultimodalDataItem``.
        dtype: With which the tower computes.

    Raises:
        RuntimeError: One was, so that its values are not those that the processor gave.
    """
    for item in items:
        feature = item.feature
        if not isinstance(feature, torch.Tensor) or not feature.is_floating_point():
            continue
        if feature.dtype.itemsize < torch.float32.itemsize and feature.dtype != dtype:
            raise RuntimeError(
                f"a screenshot's features are {feature.dtype} and the vision tower computes with {dtype}; "
                "start the server with --kv-image-cache-mb 0"
            )


def pin(items: Iterable[Any], device: torch.device) -> None:
    """Copy features that are about to be moved to a GPU into pinned memory.

    A copy from pageable memory waits for all that the stream still holds, so that nothing of the next step is queued
    while the GPU ends the last one. One from pinned memory is queued like a kernel.

    Args:
        items: SGLang's ``MultimodalDataItem``; each gets its feature in pinned memory where that was on the CPU.
        device: Where the features go; nothing happens where that is a CPU.
    """
    if device.type != "cuda":
        return
    for item in items:
        if isinstance(item.feature, torch.Tensor) and item.feature.is_cpu:
            item.feature = item.feature.pin_memory()


@contextmanager
def kept_on_host(items: Iterable[Any]) -> Iterator[None]:
    """Give items their features on the CPU back, whatever was moved meanwhile.

    SGLang copies moved features back to the CPU, in case a later chunk needs them, and waits for that copy before it
    queues the language model. They are still where they came from.

    Args:
        items: SGLang's ``MultimodalDataItem``.
    """
    on_host = [(item, item.feature) for item in items if isinstance(item.feature, torch.Tensor) and item.feature.is_cpu]
    yield
    for item, feature in on_host:
        item.feature = feature
