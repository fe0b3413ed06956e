"""When tokens were computed and when segments were pruned, so that it can be told what each token has seen.

Time is a count of prunes that were remembered. A token has seen what a prune left exactly where it was computed at that
prune's time or later: this holds along every path of the tree, whatever forked, was evicted, or was computed again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from star_kv_sglang.kept_format import pack

Marks = tuple[tuple[int, int], ...]
"""Position, and the time from which on the tokens from there were computed; ascending in position."""
Offsets = npt.NDArray[np.int16]


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
        num_kept: Tokens that each unit kept of the core.
        offsets: Gives the kept tokens' raster indices in their screenshot, [num_units, num_kept]; dropped when they
            are packed.
        packed: As :func:`star_kv_sglang.kept_format.pack` writes it; None until somebody asks.
    """

    time: int
    num_kept: int
    offsets: Callable[[], Offsets] | None
    packed: bytes | None = None


@dataclass(slots=True)
class SegmentHistory:
    """All prunes of a segment, from its first one.

    Attributes:
        first_offset: Raster index of the first token of the core in its screenshot.
        core_len: Positions of the core.
        prunes: Oldest first.
    """

    first_offset: int
    core_len: int
    prunes: list[RememberedPrune] = field(default_factory=list)
    _kept: Offsets | None = None
    """What the newest packed prune kept."""

    def packed(self, index: int) -> bytes:
        """What a prune kept, packed once.

        Raises:
            HistoryError: The offsets are not those of tokens that were there.
        """
        for prune in self.prunes[: index + 1]:
            if prune.packed is None and prune.offsets is not None:
                offsets = prune.offsets()
                before, kept = self._mask(self._kept, len(offsets)), self._mask(offsets, len(offsets))
                if (kept.sum(axis=1) != prune.num_kept).any() or (kept & ~before).any():
                    raise HistoryError("a segment keeps other tokens than it had")
                prune.packed, prune.offsets, self._kept = pack(kept, before), None, offsets
        done = self.prunes[index].packed
        if done is None:
            raise HistoryError("a prune has neither offsets nor bits")
        return done

    def _mask(self, offsets: Offsets | None, num_units: int) -> npt.NDArray[np.bool_]:
        if offsets is None:
            return np.ones((num_units, self.core_len), np.bool_)
        places = offsets.astype(np.int64) - self.first_offset
        if places.size and (places.min() < 0 or places.max() >= self.core_len):
            raise HistoryError("a segment keeps a token that lies outside of it")
        mask = np.zeros((num_units, self.core_len), np.bool_)
        np.put_along_axis(mask, places, True, axis=1)
        return mask
