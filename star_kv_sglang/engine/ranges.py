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
    if torch.autograd.profiler._is_profiler_enabled:
        return torch.profiler.record_function(PREFIX + name)
    return nullcontext() if _clock is None else _clock.measure(name)
