"""Names of the policy's stages in a profile."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from star_kv_sglang.metrics.clock import StageClock

PREFIX = "star_kv."

_clock: StageClock | None = None


def measure_with(clock: StageClock) -> None:
    """From now on, measure all stages of this process."""
    global _clock
    _clock = clock


def stage(name: str) -> AbstractContextManager[object]:
    """A range that profiles show and the clock measures; costs nothing while there is neither."""
    if _clock is None or torch.autograd.profiler._is_profiler_enabled:
        return profiled(name)
    return _clock.measure(name)


def profiled(name: str) -> AbstractContextManager[object]:
    """A range that only profiles show, for what every decode step does: measuring it would cost the step time."""
    if torch.autograd.profiler._is_profiler_enabled:
        return torch.profiler.record_function(PREFIX + name)
    return nullcontext()
