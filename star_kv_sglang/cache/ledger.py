"""The ledger of scored segments: what of the tree can be pruned again, as arrays, so that no step walks the tree."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

if TYPE_CHECKING:
    from sglang.srt.mem_cache.radix_cache import TreeNode

    from star_kv_sglang.cache.node_extra import NodeExtra
    from star_kv_sglang.cache.segments import Segment

FIRST_SIZE = 256


class SegmentLedger:
    """Numbers every segment that has stored scores and knows its size, its branch and who can use it.

    The tree keeps it up to date; numbers of segments that are gone are used again. Number 0 is never given.

    Attributes:
        slot_ids: int32 [num_slots], the segment that each slot belongs to, 0 for none; None until the pools exist.
        num_live: int64 [capacity], live tokens of each segment's core.
        core_len: int64 [capacity], positions of its core.
        shared: bool [capacity], more than one branch can use it.
        branch: int64 [capacity], the branch that it belongs to.
        last_turn: int64 [capacity], number of the last prompt of its branch.
        turn: Number of the newest prompt.
    """

    def __init__(self) -> None:
        self.slot_ids: torch.Tensor | None = None
        self.turn = 0
        self.clear()

    def clear(self) -> None:
        """Forget everything."""
        self._nodes: list[TreeNode | None] = [None] * FIRST_SIZE
        self._free = list(range(FIRST_SIZE - 1, 0, -1))
        self._num_branches = 0
        self.num_live, self.core_len, self.branch, self.last_turn = (np.zeros(FIRST_SIZE, np.int64) for _ in range(4))
        self.used, self.shared = (np.zeros(FIRST_SIZE, np.bool_) for _ in range(2))
        self._locks = bytearray(FIRST_SIZE)
        if self.slot_ids is not None:
            self.slot_ids.zero_()

    @property
    def locked(self) -> npt.NDArray[np.bool_]:
        """bool [capacity], a request holds it; a view.

        Bytes beneath, which take a single value three times as fast as an array: every lock of a path sets some.
        """
        return np.frombuffer(self._locks, np.bool_)

    def node_of(self, ident: int) -> TreeNode:
        """The node that holds a segment.

        Raises:
            KeyError: No segment has this number.
        """
        node = self._nodes[ident]
        if node is None:
            raise KeyError(f"no segment has the number {ident}")
        return node

    def new_branch(self) -> int:
        """A number for a branch, from 1."""
        self._num_branches += 1
        return self._num_branches

    def register(self, node: TreeNode, extra: NodeExtra, branch: int) -> None:
        """Number the segments of a node that have none; their scores are stored, unless the node could not be read.

        Args:
            node: The node.
            extra: Its record; its segments get their numbers.
            branch: The branch that they belong to.
        """
        if extra.unread:
            return
        for segment in extra.segments:
            if segment.ident or not segment.core_len:
                continue
            ident = self._take()
            self._nodes[ident] = node
            self.used[ident], self.shared[ident], self._locks[ident] = True, extra.shared, node.lock_ref > 0
            self.num_live[ident], self.core_len[ident] = segment.num_live, segment.core_len
            self.branch[ident], self.last_turn[ident] = branch, self.turn
            extra.replace_segment(segment, segment.numbered(ident))
            if self.slot_ids is not None:
                self.slot_ids.index_fill_(0, extra.core_slots(node.value, segment), ident)

    def moved(self, segments: Iterable[Segment], node: TreeNode) -> None:
        """Another node holds the segments now."""
        for segment in segments:
            if segment.ident:
                self._nodes[segment.ident] = node

    def forget(self, segments: Iterable[Segment]) -> None:
        """The segments are gone; whoever freed their slots, or numbers them anew, marks the slots."""
        for segment in segments:
            if segment.ident:
                self.used[segment.ident] = False
                self._nodes[segment.ident] = None
                self._free.append(segment.ident)

    def free_slots(self, slots: torch.Tensor) -> None:
        """The slots belong to no segment any more."""
        if self.slot_ids is not None:
            self.slot_ids.index_fill_(0, slots, 0)

    def set_shared(self, segments: Iterable[Segment], shared: bool) -> None:
        """Whether more than one branch can use the segments."""
        for segment in segments:
            self.shared[segment.ident] = shared

    def set_locked(self, segments: Iterable[Segment], locked: bool) -> None:
        """Whether a request holds the segments."""
        locks = self._locks
        for segment in segments:
            locks[segment.ident] = locked

    def _take(self) -> int:
        if not self._free:
            size = len(self._nodes)
            self._nodes.extend([None] * size)
            self._free = list(range(2 * size - 1, size - 1, -1))
            for name in ("num_live", "core_len", "branch", "last_turn", "used", "shared"):
                old = getattr(self, name)
                setattr(self, name, np.concatenate([old, np.zeros_like(old)]))
            self._locks = self._locks + bytearray(size)
        return self._free.pop()
