"""Which screenshots of its history an agent sends."""

from __future__ import annotations

from dataclasses import dataclass

from star_kv_sglang.tools.bench.serve.errors import ServeBenchError

APPEND, LAST, INTERVAL = "append", "last", "interval"


@dataclass(frozen=True)
class History:
    """A loop's way with old screenshots.

    Attributes:
        kind: ``append`` sends all, ``last`` the newest N, ``interval`` all since the last cut but one: it cuts after
            every N turns, down to the newest N.
        size: N; 0 with ``append``.
    """

    kind: str
    size: int = 0

    @classmethod
    def parse(cls, text: str) -> History:
        """Read ``append``, ``last:5`` or ``interval:5``.

        Raises:
            ServeBenchError: It is something else.
        """
        kind, _, size = text.partition(":")
        if kind == APPEND and not size:
            return cls(APPEND)
        if kind in (LAST, INTERVAL) and size.isdigit() and int(size) > 0:
            return cls(kind, int(size))
        raise ServeBenchError(f"--history {text!r}: give append, last:N or interval:N, N above 0")

    def first_shown(self, turn: int) -> int:
        """Number of the oldest turn whose screenshot the prompt of this turn holds; both count from 0."""
        if self.kind == APPEND:
            return 0
        if self.kind == LAST:
            return max(0, turn + 1 - self.size)
        return max(0, (turn // self.size - 1) * self.size)

    def __str__(self) -> str:
        return self.kind if self.kind == APPEND else f"{self.kind}:{self.size}"
