"""What the tree knows about a node beyond SGLang's fields."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from star_kv_sglang.cache.history import Marks, SegmentHistory
from star_kv_sglang.cache.segments import Segment

if TYPE_CHECKING:
    import torch

    from star_kv_sglang.algorithm.state import TrajectoryState
    from star_kv_sglang.cache.message_index import Mark


@dataclass(slots=True)
class NodeExtra:
    """Side record of one tree node.

    Attributes:
        start: Absolute position of the node's first token.
        segments: Segments of the node in order of position.
        labelled: Whether a request told which frames the node holds.
        unread: What the layers were given of its frames was not recorded: scores that are made of it say nothing, and
            are never stored.
        num_holes: Positions without KV.
        pending_branches: Finished requests whose sequence ended here and which no later request has continued. For each
            the length of its prompt.
        num_locks: Requests that hold the node and none of its children.
        num_used_children: Children that somebody uses.
        num_shared_children: Children that are shared.
        pinned: A request asked to keep it whole (``custom_params: {"kv_share": true}``).
        used: A request holds it, or a branch may come back to it or to what follows it.
        shared: More than one branch can use it.
        num_cuts: Times that segments of it were pruned without a query.
        state: Trajectory state of the prompt that ends here.
        computed: When its tokens were computed; empty where nobody has told.
        keeps_history: What its segments keep from now on is remembered: a request asked for it (``kv_return_kept``).
        histories: Of segments that were never pruned without it, by their first position.
        marks: Where messages are complete in it, in order; None where nobody has looked.
        lost: First positions of screenshots that were pruned because a client has left them out of a later prompt.
    """

    start: int
    segments: list[Segment] = field(default_factory=list)
    labelled: bool = False
    unread: bool = False
    num_holes: int = 0
    pending_branches: list[int] = field(default_factory=list)
    num_locks: int = 0
    num_used_children: int = 0
    num_shared_children: int = 0
    pinned: bool = False
    used: bool = False
    shared: bool = False
    num_cuts: int = 0
    state: TrajectoryState | None = None
    computed: Marks = ()
    keeps_history: bool = False
    histories: dict[int, SegmentHistory] = field(default_factory=dict)
    marks: list[Mark] | None = None
    lost: set[int] = field(default_factory=set)

    @property
    def num_users(self) -> int:
        """Requests and branches that use the node, each child that is used counted once."""
        return self.num_locks + len(self.pending_branches) + self.num_used_children

    def replace_segment(self, old: Segment, new: Segment) -> None:
        """Exchange a segment and keep the count of holes."""
        self.segments[self.segments.index(old)] = new
        self.num_holes += new.num_holes - old.num_holes

    def core_slots(self, value: torch.Tensor, segment: Segment) -> torch.Tensor:
        """Live slots of the core of a segment, int64 [num_live]; a view of the node's ``value``."""
        first = segment.core_start - self.start
        return value[first : first + segment.num_live]

    def split(self, position: int, page_size: int) -> NodeExtra:
        """Cut off and return the record of the positions before ``position``; this record keeps the rest.

        The state, the pending branches and the locks belong to the end of the node, so they stay here.
        """
        upper = NodeExtra(
            start=self.start,
            labelled=self.labelled,
            unread=self.unread,
            pinned=self.pinned,
            num_used_children=int(self.used),
            num_shared_children=int(self.shared),
            used=self.used,
            shared=self.shared,
            num_cuts=self.num_cuts,
            computed=self.computed,
            keeps_history=self.keeps_history,
            lost={first for first in self.lost if first < position},
        )
        lower: list[Segment] = []
        for segment in self.segments:
            before, after = segment.split_at(position, page_size)
            if before is not None:
                upper.segments.append(before)
            if after is not None:
                lower.append(after)
        upper.num_holes = sum(segment.num_holes for segment in upper.segments)
        # A pruned segment is never split, and no other has a history.
        upper.histories = {start: history for start, history in self.histories.items() if start < position}
        self.histories = {start: history for start, history in self.histories.items() if start >= position}
        if self.marks is not None:
            upper.marks = [mark for mark in self.marks if mark.message.end < position]
            self.marks = self.marks[len(upper.marks) :]
        self.start = position
        self.segments = lower
        self.num_holes -= upper.num_holes
        return upper
