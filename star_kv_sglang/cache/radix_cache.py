"""SGLang's radix tree as requests and the pool see it: pruned nodes stay matchable, shared nodes stay whole.

Nothing here chooses what is pruned.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from zlib import crc32

import torch
from sglang.srt.mem_cache.base_prefix_cache import (
    DecLockRefParams,
    DecLockRefResult,
    EvictParams,
    EvictResult,
    IncLockRefResult,
    MatchPrefixParams,
)

from star_kv_sglang.cache.cut_log import CutLog
from star_kv_sglang.cache.eviction import Eviction
from star_kv_sglang.cache.holed_tree import HoledTree
from star_kv_sglang.cache.ledger import SegmentLedger
from star_kv_sglang.cache.segments import Frame, Segment, segments_between

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import Req
    from sglang.srt.mem_cache.cache_init_params import CacheInitParams
    from sglang.srt.mem_cache.radix_cache import TreeNode


@dataclass(frozen=True)
class Stored:
    """What a request has just stored in the tree.

    Attributes:
        req: The request; it locks the last node of the path.
        path: Nodes from the root's child down to ``req.last_node``; empty where the tree took nothing.
        ends_prompt: The whole prompt is stored, and maybe an answer.
        has_row: The request goes on, so that its row must follow what happens to the nodes.
    """

    req: Req
    path: Sequence[TreeNode]
    ends_prompt: bool
    has_row: bool


class CacheListener:
    """Who is told what has happened in the tree. The default does nothing; the policy's engine overrides it."""

    def on_stored(self, tree: StarRadixCache, stored: Stored) -> None:
        """A request has stored what it has computed: the end of a chunk, of its prompt, or its own."""

    def on_released(self, req: Req) -> None:
        """The request gave its slots back."""

    def shrink(self, tree: StarRadixCache, num_tokens: int, *, rank: Any) -> int:
        """The pool runs short: prune what nobody holds, before leaves are dropped.

        Args:
            tree: The tree.
            num_tokens: Slots that are wanted.
            rank: Nodes whose `Eviction.rank_of` is higher stay as they are.

        Returns:
            Slots that were freed.
        """
        return 0


@dataclass(frozen=True)
class KeptTokens:
    """What a prune keeps of one segment.

    Attributes:
        start: First position of the segment.
        end: Position after its last.
        num_live: Live tokens of the core when the choice was made.
        chosen: int64 [num_layers, n], indices among these live tokens, ascending in every layer.
        num_apart: How many of the n stay beside the budget.
    """

    start: int
    end: int
    num_live: int
    chosen: torch.Tensor
    num_apart: int = 0


class StarRadixCache(HoledTree):
    """The tree that requests store into, and that gives slots back: pruned ones, and those of leaves.

    Args:
        params: SGLang's construction parameters.
        listener: Told about prompts and releases.
        ledger: Is told about every scored segment, where segments are pruned more than once.

    Attributes:
        cut_log: Is told what goes, where somebody may look at the tree; set before the first request.
        cut_sum: A checksum of all that was pruned and dropped so far, in order: trees that differ in it differ.
    """

    def __init__(
        self, params: CacheInitParams, listener: CacheListener | None = None, ledger: SegmentLedger | None = None
    ) -> None:
        self.listener = listener or CacheListener()
        self.cut_log: CutLog | None = None
        self.cut_sum = 0
        super().__init__(params, ledger)
        self.eviction = Eviction(self)

    def register_path(self, path: Sequence[TreeNode]) -> None:
        """The scores of all tokens on a path were stored: its segments enter the ledger."""
        ledger = self.ledger
        if ledger is None:
            return
        ledger.turn += 1
        branch = 0
        for node in path:
            extra = self._extras[node]
            if not extra.segments or extra.shared:
                ledger.register(node, extra, 0)
                continue
            known = next((segment.ident for segment in extra.segments if segment.ident), 0)
            branch = int(ledger.branch[known]) or branch or ledger.new_branch()
            ledger.register(node, extra, branch)
            for segment in extra.segments:
                if segment.ident:
                    ledger.branch[segment.ident], ledger.last_turn[segment.ident] = branch, ledger.turn

    def label_frames(self, path: Sequence[TreeNode], frames: Sequence[Frame]) -> list[TreeNode]:
        """Tell the nodes at the end of a path which frames they hold, where that is not yet known; returns those."""
        new: list[TreeNode] = []
        for node in reversed(path):
            extra = self._extras[node]
            if extra.labelled:
                break
            new.append(node)
            extra.segments = segments_between(frames, extra.start, extra.start + len(node.key), self.page_size)
            extra.labelled = True
        return new

    def checkpoint(self, req: Req, *, up_to: int) -> None:
        """Store what a request has computed up to ``up_to``, then tell the listener: the policy prunes.

        Called after each chunk of a prompt, and once more when the request ends: then SGLang gives back, behind this,
        what the tree did not take, and the row.

        Args:
            req: The request. ``req.kv.cache_protected_len`` is the length that the tree owns, before and afterwards.
            up_to: Positions whose K and V are computed.
        """
        if self.disable:
            return
        is_over = req.finished()
        is_whole_prompt = up_to == len(req.full_untruncated_fill_ids)
        key, _, _ = self._insert_cache(req, req.full_untruncated_fill_ids[:up_to], split_prompt=True)
        # What would have split a sealed segment, or does not fill a page, is not in the tree: it stays the request's.
        last = self.match_prefix(MatchPrefixParams(key=key)).last_device_node
        lock = self.lock(last)
        self.unlock(req.lock)
        req.lock, req.last_node = lock, last
        req.kv.cache_protected_len = self.end_of(last)
        in_tree = slice(0, req.kv.cache_protected_len)
        self.req_to_token_pool.write((req.kv.req_pool_idx, in_tree), self.path_device_indices(last))
        path = self.path(last)
        self.listener.on_stored(self, Stored(req, path, is_over or is_whole_prompt, has_row=not is_over))
        if is_over and path:
            # Behind the prune: a branch that may come back makes its path shared as soon as another one uses it.
            self.sharing.end_branch(last, len(req.origin_input_ids))

    def on_release(self, req: Req, *, checkpointed: bool) -> None:
        """The request gave its row and its lock back: it ended, or it was put back into the queue."""
        self.listener.on_released(req)

    def segment_at(self, path: Sequence[TreeNode], kept: KeptTokens) -> tuple[TreeNode, Segment] | None:
        """The segment that a choice was made for, if the tree still holds it as it was then."""
        for node in path:
            for segment in self._extras[node].segments:
                if (segment.start, segment.end, segment.num_live) == (kept.start, kept.end, kept.num_live):
                    return node, segment
        return None

    def punch(self, node: TreeNode, segment: Segment, num_keep: int) -> torch.Tensor:
        """Give back all but the first ``num_keep`` live slots of a segment's core and seal it.

        The caller has moved what is kept into these slots, and mends the rows of requests that hold the node.

        Returns:
            The slots that were freed, int64 [num_live - num_keep].
        """
        return self.punch_all([(node, segment, num_keep)])

    def punch_all(self, targets: Sequence[tuple[TreeNode, Segment, int]]) -> torch.Tensor:
        """:meth:`punch` for many segments at once: node, segment and ``num_keep`` of each.

        Returns:
            The slots that were freed, int64, segment after segment.
        """
        holes: list[torch.Tensor] = []
        for node, segment, num_keep in targets:
            extra = self._extras[node]
            holes.append(node.value[segment.core_start + num_keep - extra.start : segment.hole_start - extra.start])
            num_freed = segment.num_live - num_keep
            self.cut_sum = crc32(b"%d %d %d" % (segment.start, segment.num_live, num_keep), self.cut_sum)
            if self.cut_log is not None and num_freed:
                self.cut_log.pruned(node, segment, num_keep)
            extra.replace_segment(segment, segment.pruned_to(num_keep))
            if node.lock_ref > 0:
                self.protected_size_ -= num_freed
            else:
                self.evictable_size_ -= num_freed
            self.sharing.pruned(extra, num_freed)
            if self.ledger is not None:
                self.ledger.num_live[segment.ident] = num_keep
        freed = torch.cat(holes)
        torch._foreach_zero_(holes)
        if self.ledger is not None:
            self.ledger.free_slots(freed)
        # Whole pages, each in one piece: wherever the first of them lies, it begins a page.
        self.token_to_kv_pool_allocator.free_segment(freed, start_pos=0)
        return freed

    def inc_lock_ref(self, node: TreeNode) -> IncLockRefResult:
        """Protect the path to ``node`` from eviction."""
        return IncLockRefResult(delta=0 if self.disable else -self._lock_path(node, 1))

    def dec_lock_ref(self, node: TreeNode, params: DecLockRefParams | None = None) -> DecLockRefResult:
        """Undo one :meth:`inc_lock_ref`."""
        return DecLockRefResult(delta=0 if self.disable else self._lock_path(node, -1))

    def _lock_path(self, last: TreeNode, by: int) -> int:
        """Add ``by``, 1 or -1, to the locks of all nodes up to the root; returns the live slots of those that are
        locked now and were not, or the other way round.
        """
        extras, ledger, root, leaves = self._extras, self.ledger, self.root_node, self.evictable_leaves
        # Before its first lock a node has 0, after its last one.
        turning = 0 if by > 0 else 1
        num_turned, node = 0, last
        while node is not root:
            locks = node.lock_ref
            node.lock_ref = locks + by
            if locks == turning:
                extra = extras[node]
                num_turned += len(node.key.token_ids) - extra.num_holes
                if extra.segments and ledger is not None:
                    ledger.set_locked(extra.segments, by > 0)
                if not node.children:  # only leaves are evicted
                    (leaves.discard if by > 0 else leaves.add)(node)
            node = node.parent
        self.sharing.hold(last, by)
        self.evictable_size_ -= by * num_turned
        self.protected_size_ += by * num_turned
        return num_turned

    def evict(self, params: EvictParams) -> EvictResult:
        """Free ``num_tokens`` live slots: let the listener shrink what nobody holds, then drop unlocked leaves."""
        if self.disable:
            return EvictResult()
        start_time = time.perf_counter()
        num_evicted = self.eviction.free(
            params.num_tokens, lambda num_tokens, rank: self.listener.shrink(self, num_tokens, rank=rank)
        )
        self.update_eviction_metrics(num_evicted, start_time)
        return EvictResult(num_tokens_evicted=num_evicted)

    def drop_leaf(self, leaf: TreeNode) -> int:
        """Drop an unlocked leaf and give its slots back; returns how many there were."""
        slots, segments = self.live_slots(leaf), self._extras[leaf].segments
        self.cut_sum = crc32(b"%d %d" % (self._extras[leaf].start, len(slots)), self.cut_sum)
        if self.cut_log is not None:
            self.cut_log.dropped(leaf, len(slots))
        self.token_to_kv_pool_allocator.free_segment(slots, start_pos=0)
        if self.ledger is not None and segments:
            self.ledger.free_slots(slots)
            self.ledger.forget(segments)
        self._delete_leaf(leaf)
        self.kv_events.record_remove(leaf)
        return len(slots)
