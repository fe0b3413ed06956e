"""Where the seconds of a turn go."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(slots=True)
class Stopwatch:
    """Seconds since it was made, by where they went.

    Attributes:
        environment_s: In the environment: the browser.
        server_s: From sending a request to its answer, of the attempt that was answered.
        waiting_s: For the first branch of several that ask the same, or for a server that is away.
    """

    environment_s: float = 0.0
    server_s: float = 0.0
    waiting_s: float = 0.0
    _started: float = 0.0

    def __post_init__(self) -> None:
        self._started = time.perf_counter()

    @contextmanager
    def in_environment(self) -> Iterator[None]:
        """Counts the block for the environment."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.environment_s += time.perf_counter() - started

    def read(self) -> dict[str, float]:
        """All shares; ``own_s`` is what is left for this process, with the time in which it served other branches."""
        known = self.environment_s + self.server_s + self.waiting_s
        own_s = max(0.0, time.perf_counter() - self._started - known)
        shares = {
            "environment_s": self.environment_s,
            "server_s": self.server_s,
            "waiting_s": self.waiting_s,
            "own_s": own_s,
        }
        return {name: round(seconds, 6) for name, seconds in shares.items()}
