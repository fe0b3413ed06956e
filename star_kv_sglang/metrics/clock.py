"""Time of the policy's stages, without waiting for the device."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

MAX_PENDING = 4096
"""Ranges whose end the device has not reached; older ones are dropped when nobody collects."""


@dataclass
class StageTotal:
    """All ranges of a stage so far.

    Attributes:
        count: How many.
        seconds: Their sum.
    """

    count: int = 0
    seconds: float = 0.0


class StageClock:
    """Measures ranges: on a CPU by the host's clock, on a GPU by events that are read once the device has passed them.

    Args:
        on_gpu: Whether the stages' work is queued on a GPU.
        observe: Told about each range: its stage and its seconds.
    """

    def __init__(self, *, on_gpu: bool, observe: Callable[[str, float], None]) -> None:
        self.totals: dict[str, StageTotal] = {}
        self._on_gpu = on_gpu
        self._observe = observe
        self._pending: deque[tuple[str, torch.cuda.Event, torch.cuda.Event]] = deque(maxlen=MAX_PENDING)

    @contextmanager
    def measure(self, stage: str) -> Iterator[None]:
        """The block is a range of ``stage``."""
        if not self._on_gpu:
            started = time.perf_counter()
            try:
                yield
            finally:
                self._add(stage, time.perf_counter() - started)
            return
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        first.record()
        try:
            yield
        finally:
            last.record()
            self._pending.append((stage, first, last))

    def collect(self) -> None:
        """Take over what the device has finished; waits for nothing."""
        while self._pending and self._pending[0][2].query():
            stage, first, last = self._pending.popleft()
            self._add(stage, first.elapsed_time(last) / 1e3)

    def _add(self, stage: str, seconds: float) -> None:
        total = self.totals.setdefault(stage, StageTotal())
        total.count += 1
        total.seconds += seconds
        self._observe(stage, seconds)
