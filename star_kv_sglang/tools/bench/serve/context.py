"""What every phase gets."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from star_kv_sglang.tools.bench.serve.client import EngineClient
from star_kv_sglang.tools.bench.serve.results import Figure, Results
from star_kv_sglang.tools.bench.serve.server import Policy


@dataclass(frozen=True)
class Sizes:
    """How much is measured.

    Attributes:
        histories: screenshots in a branch of the decode phase.
        batches: branches that decode at the same time, ascending.
        window_s: seconds over which decoding is measured.
        branch_screens: screenshots in a branch of the branches phase.
        ttft_turns, ttft_repeats: turns of a conversation, and conversations.
        turns_branches, turns_turns, turns_shared: branches, their turns, and how many of these they share.
        answer_tokens: length of an agent's answer.
        max_seconds: longest time of a phase.
    """

    histories: Sequence[int] = (5, 10)
    batches: Sequence[int] = (1, 8, 32, 64)
    window_s: float = 2.0
    branch_screens: int = 10
    ttft_turns: int = 5
    ttft_repeats: int = 4
    turns_branches: int = 8
    turns_turns: int = 5
    turns_shared: int = 2
    answer_tokens: int = 16
    max_seconds: float = 180.0

    def brief(self) -> Sizes:
        """Decoding at the reference point only: the longest history, and the batch of the targets."""
        batch = REFERENCE_BATCH if REFERENCE_BATCH in self.batches else self.batches[-1]
        return replace(self, histories=self.histories[-1:], batches=(batch,))


REFERENCE_BATCH: Final = 32

QUICK = Sizes(batches=(1, 32), ttft_repeats=2, turns_branches=4, turns_turns=4, max_seconds=120.0)
"""What still tells whether the targets are met, in about half of the time."""


class LogReader:
    """The server's log, from a mark on."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._mark = 0

    def mark(self) -> None:
        """Read from here on."""
        self._mark = self._path.stat().st_size

    def since_mark(self) -> str:
        """What was written since the mark."""
        with self._path.open("rb") as file:
            file.seek(self._mark)
            return file.read().decode(errors="replace")


@dataclass
class Context:
    """A phase's server, its sizes, its clock and the place for its figures.

    Attributes:
        say: shows one line of progress.
        end: when the whole run must end, on `time.monotonic`'s clock.
    """

    policy: Policy
    client: EngineClient
    log: LogReader
    screens: Sequence[Path]
    sizes: Sizes
    results: Results
    say: Callable[[str], None]
    phase: str
    end: float = math.inf
    deadline: float = 0.0

    def start_clock(self) -> None:
        """The phase's time begins."""
        self.deadline = min(time.monotonic() + self.sizes.max_seconds, self.end)

    @property
    def seconds_left(self) -> float:
        """Until the phase must end."""
        return self.deadline - time.monotonic()

    def figure(self, metric: str, value: float | None, **more: int | bool | str) -> Figure:
        """A figure of this policy and phase."""
        return replace(Figure(self.policy.label, self.phase, metric, value), **more)  # type: ignore[arg-type]

    def add(self, *figures: Figure) -> None:
        """Keep figures."""
        self.results.add(*figures)
