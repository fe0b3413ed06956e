"""When tokens were computed and when segments were pruned, so that it can be told what each token has seen.

Time is a count of prunes that were remembered. A token has seen what a prune left exactly where it was computed at that
prune's time or later: this holds along every path of the tree, whatever forked, was evicted, or was computed again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from star_kv_sglang.kept_format import Indices, pack

Marks = tuple[tuple[int, int], ...]
"""Position, and the time from which on the tokens from there were computed; ascending in position."""


class HistoryError(RuntimeError):
    """What was remembered of a prune contradicts itself."""


def marks_between(marks: Iterable[tuple[int, int]], start: int, end: int) -> Marks:
    """The marks that hold for positions [start, end); the first one there lies at ``start`` if it began before."""
    inside: list[tuple[int, int]] = []
    for position, time in marks:
        if position >= end:
            break
        if inside and position <= start:
            inside.clear()
        inside.append((max(position, start), time))
    return tuple(inside)


def first_after(marks: Sequence[tuple[int, int]], time: int) -> int | None:
    """First position that was computed at ``time`` or later; None where there is none.

    Raises:
        HistoryError: A position behind it was computed earlier.
    """
    first = None
    for position, computed in marks:
        if first is None and computed >= time:
            first = position
        elif first is not None and computed < time:
            raise HistoryError("a token behind one that has seen a prune has not seen it")
    return first


@dataclass(slots=True)
class RememberedPrune:
    """One prune of a segment.

    Attributes:
        time: When it was.
        num_before: Tokens of the core that each unit had.
        num_kept: Tokens that each unit kept.
    """

    time: int
    num_before: int
    num_kept: int
    _kept: Callable[[], Indices] | None
    _packed: bytes = b""

    @property
    def packed(self) -> bytes:
        """What each unit kept, packed when it is asked for first.

        Raises:
            KeptFormatError: It kept what it did not have.
        """
        if self._kept is not None:
            self._packed, self._kept = pack(self._kept(), self.num_before), None
        return self._packed


@dataclass(slots=True)
class SegmentHistory:
    """All prunes of a segment, from its first one.

    Attributes:
        core_len: Positions of the core.
        prunes: Oldest first.
    """

    core_len: int
    prunes: list[RememberedPrune] = field(default_factory=list)
