"""Frames and segments: what of a sequence is a screenshot, and what of a screenshot lies in one tree node.

All positions are absolute positions of the sequence, so that splitting a node never re-bases them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Frame:
    """One screenshot of a prompt.

    Attributes:
        start: Position of its first visual token.
        rows: Rows of the token grid (after the vision tower's merge).
        cols: Columns of the token grid.
        image_hash: SGLang's hash of the image.
    """

    start: int
    rows: int
    cols: int
    image_hash: int

    @property
    def end(self) -> int:
        """Position after its last visual token."""
        return self.start + self.rows * self.cols


@dataclass(frozen=True)
class Segment:
    """The part of one frame that lies in one tree node; the unit that is pruned.

    Only whole pages inside the segment can be freed: they are its core. Live tokens of the core always lie in its first
    ``num_live`` positions; the rest are holes.

    Attributes:
        frame: The frame it belongs to.
        start: First position.
        end: Position after the last.
        core_start: ``start`` rounded up to a page.
        core_end: ``end`` rounded down to a page, at least ``core_start``.
        num_live: Live tokens of the core.
        sealed: It was pruned: it is matched whole or not at all, and never split.
        ident: Its number in the ledger of scored segments; 0 where it has no stored scores.
        num_apart: Live tokens that stay beside the budget, in whole pages: its sinks, where a prune has kept them.
    """

    frame: Frame
    start: int
    end: int
    core_start: int
    core_end: int
    num_live: int
    sealed: bool = False
    ident: int = 0
    num_apart: int = 0

    @classmethod
    def unpruned(cls, frame: Frame, start: int, end: int, page_size: int) -> Segment:
        """A segment whose tokens are all live."""
        core_start = -(-start // page_size) * page_size
        core_end = max(core_start, end // page_size * page_size)
        return cls(frame, start, end, core_start, core_end, num_live=core_end - core_start)

    @property
    def core_len(self) -> int:
        """Positions of the core, live or not."""
        return self.core_end - self.core_start

    @property
    def hole_start(self) -> int:
        """First position of the holes, which reach to ``core_end``."""
        return self.core_start + self.num_live

    @property
    def num_holes(self) -> int:
        """Positions whose KV was pruned."""
        return self.core_len - self.num_live

    def pruned_to(self, num_live: int) -> Segment:
        """The segment after a prune that leaves ``num_live`` tokens in the core."""
        # Not by ``replace``, which takes ten times as long: a step of the tree-wide budget does this for each segment.
        return Segment(
            self.frame, self.start, self.end, self.core_start, self.core_end, num_live, True, self.ident,
            min(self.num_apart, num_live),
        )  # fmt: skip

    def with_apart(self, num_apart: int) -> Segment:
        """The segment with so many live tokens beside the budget."""
        return self if num_apart == self.num_apart else replace(self, num_apart=num_apart)

    def numbered(self, ident: int) -> Segment:
        """The segment with its number in the ledger."""
        return replace(self, ident=ident)

    def split_at(self, position: int, page_size: int) -> tuple[Segment | None, Segment | None]:
        """The two parts at ``position``; None for an empty one.

        Raises:
            ValueError: The segment is sealed and ``position`` lies inside of it.
        """
        if position <= self.start:
            return None, self
        if position >= self.end:
            return self, None
        if self.sealed:
            raise ValueError(f"sealed segment [{self.start}, {self.end}) cannot be split at {position}")
        return (
            Segment.unpruned(self.frame, self.start, position, page_size),
            Segment.unpruned(self.frame, position, self.end, page_size),
        )


def segments_between(frames: Iterable[Frame], start: int, end: int, page_size: int) -> list[Segment]:
    """Unpruned segments of the frames that overlap positions [start, end)."""
    return [
        Segment.unpruned(frame, max(frame.start, start), min(frame.end, end), page_size)
        for frame in frames
        if frame.start < end and frame.end > start
    ]


def live_ranges(start: int, end: int, segments: Iterable[Segment]) -> Iterator[tuple[int, int]]:
    """Non-empty runs of live positions in [start, end), given its segments in order."""
    position = start
    for segment in segments:
        if segment.num_holes:
            if segment.hole_start > position:
                yield position, segment.hole_start
            position = segment.core_end
    if end > position:
        yield position, end


class LiveIndex:
    """Maps positions of a row to indices among its live tokens.

    Args:
        segments: All segments of the row, in order of position.
    """

    def __init__(self, segments: Iterable[Segment]) -> None:
        self._holes = [(s.hole_start, s.core_end) for s in segments if s.num_holes]

    def before(self, position: int) -> int:
        """Number of live tokens at positions smaller than ``position``."""
        return position - sum(min(position, end) - start for start, end in self._holes if start < position)
