"""How features of a new screenshot reach the GPU: from pinned memory, and without a copy back."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch

logger = logging.getLogger(__name__)


def require_tower_dtype(model: Any, dtype: torch.dtype) -> None:
    """Make sure that the vision tower computes with the type to which kept features are rounded.

    Args:
        model: SGLang's model; one without a tower is fine.
        dtype: That of the model's configuration.

    Raises:
        RuntimeError: The tower has another.
    """
    tower = getattr(model, "visual", None)
    if tower is not None and tower.dtype != dtype:
        raise RuntimeError(
            f"the vision tower computes with {tower.dtype} and the model with {dtype}, to which kept screenshots are "
            "rounded; start the server with --kv-image-cache-mb 0"
        )


def pin(items: Iterable[Any], device: torch.device, dtype: torch.dtype | None) -> int:
    """Copy features that are about to be moved to a GPU into pinned memory.

    A copy from pageable memory waits for all that the stream still holds, so that nothing of the next step is queued
    while the GPU ends the last one. One from pinned memory is queued like a kernel.

    Args:
        items: SGLang's ``MultimodalDataItem``; each image gets its feature in pinned memory where that was on the CPU.
        device: Where the features go; nothing happens where that is a CPU.
        dtype: That of the tower. Another one is left to SGLang, which may convert it on its way.

    Returns:
        How many stay in pageable memory, because there is no other.
    """
    num_refused = 0
    for item in items if device.type == "cuda" else ():
        feature = item.feature
        if isinstance(feature, torch.Tensor) and feature.is_cpu and feature.dtype == dtype and item.is_image():
            try:
                item.feature = feature.pin_memory()
            except RuntimeError as error:
                num_refused += 1
                _warn_once(str(error))
    return num_refused


@cache
def _warn_once(reason: str) -> None:
    logger.warning(
        "no pinned memory for a screenshot's features (%s): their upload waits for the step before. Further cases are "
        "only counted.", reason,
    )  # fmt: skip


@contextmanager
def kept_on_host(items: Iterable[Any]) -> Iterator[None]:
    """Give items their features on the CPU back, whatever was moved meanwhile.

    SGLang copies moved features back to the CPU, in case a later chunk needs them, and waits for that copy before it
    queues the language model. They are still where they came from.

    Args:
        items: SGLang's ``MultimodalDataItem``.
    """
    on_host = [(item, item.feature) for item in items if isinstance(item.feature, torch.Tensor) and item.feature.is_cpu]
    try:
        yield
    finally:
        for item, feature in on_host:
            item.feature = feature
