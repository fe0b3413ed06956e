"""Features of screenshots in shared memory, in the process that answers clients.

SGLang's cache of processed images decides how long features live. Here they only move, once, into memory that the
scheduler can map, and a request that needs them says where they are instead of carrying a copy.
"""

from __future__ import annotations

import errno
import logging
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.utils.weak import WeakIdKeyDictionary

from star_kv_sglang.images.segment import Segment, most_segments
from star_kv_sglang.images.shared_feature import SharedFeature

logger = logging.getLogger(__name__)


@dataclass
class FeatureCounters:
    """What the store did.

    Attributes:
        num_moved: Screenshots whose features were moved into shared memory: each once.
        num_not_moved: Screenshots for which there was no memory; their features are copied with every request.
        num_sent: Features that a request needed and did not carry.
        num_unsent_bytes: Bytes that these would have been.
        num_processed: Screenshots that were processed and moved.
        num_processing_ms: Milliseconds that this took.
    """

    num_moved: int = 0
    num_not_moved: int = 0
    num_sent: int = 0
    num_unsent_bytes: int = 0
    num_processed: int = 0
    num_processing_ms: int = 0

    def saved_ms(self, num_hits: int) -> int:
        """Milliseconds that as many screenshots would have taken, had they been processed again."""
        return round(num_hits * self.num_processing_ms / self.num_processed) if self.num_processed else 0


class FeatureStore:
    """Moves features into shared memory and tells requests where they lie."""

    def __init__(self) -> None:
        self.counters = FeatureCounters()
        self._segments = WeakIdKeyDictionary()
        self._held_by_request = WeakIdKeyDictionary()

    def move(self, feature: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
        """The same values in shared memory; the tensor itself where there is no room.

        Args:
            feature: On the CPU, contiguous.
            dtype: That the vision tower computes with, to which it would round them first of all; None: as they are.
        """
        dtype = feature.dtype if dtype is None or not feature.is_floating_point() else dtype
        try:
            if len(self._segments) >= most_segments():
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            segment = Segment(feature.numel() * dtype.itemsize)
        except OSError as error:
            if not self.counters.num_not_moved:
                logger.warning(
                    "no shared memory for a screenshot's features (%s): they are copied with every request. Further "
                    "cases are only counted.", error,
                )  # fmt: skip
            self.counters.num_not_moved += 1
            return feature
        moved = torch.empty(0, dtype=dtype).set_(segment.memory).view(feature.shape)
        moved.copy_(feature)
        self._segments[moved] = segment
        self.counters.num_moved += 1
        return moved

    def move_artifacts(self, artifacts: Iterable[Any], dtype: torch.dtype | None = None) -> list[Any]:
        """Processed images with their features in shared memory; those that are not on the CPU stay as they are."""
        return [
            replace(one, feature=self.move(one.feature, dtype))
            if isinstance(one.feature, torch.Tensor) and one.feature.is_cpu and one.feature.nbytes
            else one
            for one in artifacts
        ]

    @contextmanager
    def processing(self, num_images: int) -> Iterator[None]:
        """Measure what new screenshots cost, until they are moved."""
        begin = time.perf_counter()
        yield
        self.counters.num_processed += num_images
        self.counters.num_processing_ms += round(1000 * (time.perf_counter() - begin))

    def detach_features(self, items: Sequence[Any], request: object | None) -> None:
        """Replace the features of a request's items by where they lie.

        Args:
            items: SGLang's ``MultimodalDataItem`` of the request.
            request: What this process remembers of the request until it is over: so long its features stay, whatever
                the cache drops. None where it is over already.
        """
        held = []
        for item in items:
            feature = item.feature
            if not isinstance(feature, torch.Tensor) or request is None:
                continue
            segment = self._segments.get(feature)
            if segment is None:
                continue
            held.append(feature)
            item.feature = SharedFeature(segment.address, feature.shape, feature.dtype)
            self.counters.num_sent += 1
            self.counters.num_unsent_bytes += feature.nbytes
        if held and request is not None:
            self._held_by_request[request] = [*self._held_by_request.get(request, ()), *held]
