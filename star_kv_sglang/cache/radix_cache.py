"""SGLang's radix tree with holes: pruned nodes stay matchable, shared nodes stay whole.

Keys, lengths and positions stay logical; only slots are counted live. Nothing here chooses what is pruned.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from sglang.srt.mem_cache.base_prefix_cache import (
    DecLockRefParams,
    DecLockRefResult,
    EvictParams,
    EvictResult,
    IncLockRefResult,
    MatchPrefixParams,
)
from sglang.srt.mem_cache.radix_cache import RadixCache, RadixKey, TreeNode

from star_kv_sglang.cache.ledger import SegmentLedger
from star_kv_sglang.cache.node_extra import NodeExtra
from star_kv_sglang.cache.segments import Frame, Segment, live_ranges, segments_between

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import Req
    from sglang.srt.mem_cache.cache_init_params import CacheInitParams


class CacheListener:
    """What happens around the tree's own bookkeeping. The default does nothing; the policy's engine overrides it."""

    def frames_of(self, req: Req) -> Sequence[Frame]:
        """The screenshots of a request, in order."""
        return ()

    def on_prompt_cached(self, tree: StarRadixCache, req: Req, *, has_row: bool) -> None:
        """The request's prompt lies in the tree and ``req.last_node`` is locked by it.

        Args:
            has_row: The request goes on, so that its row must follow what happens to the nodes.
        """

    def on_released(self, req: Req) -> None:
        """The request gave its slots back."""

    def shrink(self, tree: StarRadixCache, num_tokens: int, *, rank: Any) -> int:
        """The pool runs short: prune what nobody holds, before leaves are dropped.

        Args:
            tree: The tree.
            num_tokens: Slots that are wanted.
            rank: Nodes whose `StarRadixCache.eviction_rank` is higher stay as they are.

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
    """

    start: int
    end: int
    num_live: int
    chosen: torch.Tensor


class StarRadixCache(RadixCache):
    """RadixCache whose nodes may hold fewer slots than positions.

    Args:
        params: SGLang's construction parameters.
        listener: Told about prompts and releases.
        ledger: Is told about every scored segment, where segments are pruned more than once.
    """

    def __init__(
        self, params: CacheInitParams, listener: CacheListener | None = None, ledger: SegmentLedger | None = None
    ) -> None:
        self._extras: dict[TreeNode, NodeExtra] = {}
        self._private_size = 0
        self._pinned_size = 0
        self.listener = listener or CacheListener()
        self.ledger = ledger
        super().__init__(params)
        self._has_ranks = isinstance(self.eviction_strategy.get_priority(self.root_node), tuple)

    def reset(self) -> None:
        """Forget everything."""
        super().reset()
        self._extras = {self.root_node: NodeExtra(start=0, labelled=True)}
        self._private_size = 0
        self._pinned_size = 0
        if self.ledger is not None:
            self.ledger.clear()

    # -- what a node holds -------------------------------------------------------------------------------------------

    def extra(self, node: TreeNode) -> NodeExtra:
        """The side record of a node of this tree."""
        return self._extras[node]

    def end_of(self, node: TreeNode) -> int:
        """Absolute position after the node's last token."""
        return self._extras[node].start + len(node.key)

    def num_live(self, node: TreeNode) -> int:
        """Slots that the node owns."""
        return len(node.key) - self._extras[node].num_holes

    def num_holes(self, node: TreeNode) -> int:
        """Positions without a slot on the path to ``node``."""
        return sum(self._extras[one].num_holes for one in self.path(node))

    def private_size(self) -> int:
        """Slots of all nodes that no more than one branch can use."""
        return self._private_size

    def pinned_size(self) -> int:
        """Slots of all nodes that are pinned: they are shared, so that none is pruned, and go when they are evicted."""
        return self._pinned_size

    def live_slots(self, node: TreeNode) -> torch.Tensor:
        """The node's slots without its holes, int64 [num_live]; no device synchronisation."""
        extra = self._extras[node]
        values: torch.Tensor = node.value
        if not extra.num_holes:
            return values
        end = extra.start + len(node.key)
        runs = [values[a - extra.start : b - extra.start] for a, b in live_ranges(extra.start, end, extra.segments)]
        return torch.cat(runs) if runs else values[:0]

    def path(self, node: TreeNode) -> list[TreeNode]:
        """Nodes from the root's child down to ``node``."""
        nodes = []
        while node is not self.root_node:
            nodes.append(node)
            node = node.parent
        return nodes[::-1]

    def nodes(self) -> Iterator[TreeNode]:
        """All nodes but the root, parents first."""
        stack = list(self.root_node.children.values())
        while stack:
            node = stack.pop()
            yield node
            stack.extend(node.children.values())

    # -- matching and inserting --------------------------------------------------------------------------------------

    def _match_prefix_helper(self, node: TreeNode, key: RadixKey) -> tuple[list[torch.Tensor], TreeNode]:
        access_time = time.monotonic()
        node.last_access_time = access_time
        values: list[torch.Tensor] = []
        while len(key) > 0:
            child = node.children.get(key.child_key(self.page_size))
            if child is None:
                break
            child.last_access_time = access_time
            matched = child.key.match(key, page_size=self.page_size)
            if matched == len(child.key):
                values.append(child.value)
                node = child
                key = key[matched:]
                continue
            matched = self._splittable_length(child, matched)
            if matched:
                node = self._split_node(child.key, child, matched)
                values.append(node.value)
            break
        return values, node

    def _splittable_length(self, node: TreeNode, length: int) -> int:
        """Largest page-aligned length, at most ``length``, at which the node may be split: not in a sealed segment."""
        extra = self._extras[node]
        position = extra.start + length
        for segment in reversed(extra.segments):
            if segment.sealed and segment.start < position < segment.end:
                position = max(extra.start, segment.start // self.page_size * self.page_size)
        return position - extra.start

    def _descend(self, key: RadixKey) -> Iterator[tuple[TreeNode, int]]:
        """Nodes along ``key`` and how much of each it matches; the last may match in part. Changes nothing."""
        node, rest = self.root_node, key
        while len(rest) > 0:
            child = node.children.get(rest.child_key(self.page_size))
            if child is None:
                return
            matched = child.key.match(rest, page_size=self.page_size)
            yield child, matched
            if matched < len(child.key):
                return
            node, rest = child, rest[matched:]

    def nodes_along(self, key: RadixKey) -> list[TreeNode]:
        """Nodes that hold a beginning of ``key``, or of what follows the node before; changes nothing."""
        return [node for node, matched in self._descend(key.page_aligned(self.page_size)) if matched]

    def held_length(self, key: RadixKey) -> int:
        """How much of ``key`` lies in the tree, sealed or not."""
        return sum(matched for _, matched in self._descend(key.page_aligned(self.page_size)))

    def insertable_length(self, key: RadixKey) -> int:
        """How much of ``key`` the tree can hold without splitting a sealed segment.

        A key that ends or diverges inside of a sealed segment can be stored up to the segment only.
        """
        done = 0
        for node, matched in self._descend(key):
            allowed = matched if matched == len(node.key) else self._splittable_length(node, matched)
            if allowed < matched:
                return done + allowed
            done += matched
        return len(key)

    def _insert_helper(
        self, node: TreeNode, key: RadixKey, value: torch.Tensor, priority: int = 0, inserted_len: int = 0
    ) -> tuple[int, TreeNode]:
        access_time = time.monotonic()
        done = 0
        while len(key) > 0:
            child = node.children.get(key.child_key(self.page_size))
            if child is None:
                break
            matched = child.key.match(key, page_size=self.page_size)
            whole = matched == len(child.key)
            allowed = matched if whole else self._splittable_length(child, matched)
            # What would have to split a sealed segment is not stored, nor is anything behind it.
            key = key[matched:] if allowed == matched else key[:0]
            if not allowed:
                break
            child.last_access_time = access_time
            node = child if whole else self._split_node(child.key, child, allowed)
            node.priority = max(node.priority, priority or 0)
            done += allowed
            if done > inserted_len:  # what the request has inserted before was counted then
                self._inc_hit_count(node)
        if not len(key):
            return done, node
        _, last = super()._insert_helper(node, key, value[done : done + len(key)], priority, inserted_len - done)
        self._extras[last] = NodeExtra(start=done)
        self._private_size += len(key)
        return done, last

    def _split_node(self, key: RadixKey, child: TreeNode, split_len: int) -> TreeNode:
        extra = self._extras[child]
        before = extra.segments
        upper = extra.split(extra.start + split_len, self.page_size)
        node: TreeNode = super()._split_node(key, child, split_len)
        self._extras[node] = upper
        if self.ledger is not None:
            self.ledger.moved(upper.segments, node)
            # A segment that was cut is two new ones.
            cut = [segment for segment in before if segment not in upper.segments and segment not in extra.segments]
            for segment in cut:
                if segment.ident:
                    branch = int(self.ledger.branch[segment.ident])
                    self.ledger.forget((segment,))
                    self.ledger.register(node, upper, branch)
                    self.ledger.register(child, extra, branch)
        return node

    def _update_users(self, node: TreeNode) -> None:
        """Somebody began or ceased to use the node: decide anew whether it is used and shared, and its ancestors as far
        as that changes.

        Users are requests that end here, branches that may come back, and children that have users. A node is shared
        when it has several, when it is pinned, and when a child is. A node without users, such as an answer that its
        agent has rewritten, shares nothing.
        """
        extras, root = self._extras, self.root_node
        extra = extras[node]
        while node is not root:
            users = extra.num_locks + len(extra.tips) + extra.num_used_children
            used, shared = users > 0, users > 1 or extra.pinned or extra.num_shared_children > 0
            if used is extra.used and shared is extra.shared:
                return
            parent = node.parent
            above = extras[parent]
            if used is not extra.used:
                above.num_used_children += 1 if used else -1
                extra.used = used
            if shared is not extra.shared:
                above.num_shared_children += 1 if shared else -1
                extra.shared = shared
                self._private_size += -self.num_live(node) if shared else self.num_live(node)
                if self.ledger is not None:
                    self.ledger.set_shared(extra.segments, shared)
            node, extra = parent, above

    def register_path(self, node: TreeNode) -> None:
        """The scores of all tokens on the path to ``node`` were stored: its segments enter the ledger."""
        ledger = self.ledger
        if ledger is None:
            return
        ledger.turn += 1
        branch = 0
        for one in self.path(node):
            extra = self._extras[one]
            if not extra.segments or extra.shared:
                ledger.register(one, extra, 0)
                continue
            known = next((s.ident for s in extra.segments if s.ident), 0)
            branch = int(ledger.branch[known]) or branch or ledger.new_branch()
            ledger.register(one, extra, branch)
            for segment in extra.segments:
                ledger.branch[segment.ident], ledger.last_turn[segment.ident] = branch, ledger.turn

    def label_frames(self, node: TreeNode, frames: Sequence[Frame]) -> None:
        """Tell the nodes up to the root which frames they hold, where that is not yet known."""
        while not (extra := self._extras[node]).labelled:
            extra.segments = segments_between(frames, extra.start, extra.start + len(node.key), self.page_size)
            extra.labelled = True
            node = node.parent

    # -- requests ----------------------------------------------------------------------------------------------------

    def checkpoint(self, req: Req, *, up_to: int) -> None:
        """Store what a request has computed up to ``up_to``; at the end of its prompt, let the policy prune.

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
        self.label_frames(last, self.listener.frames_of(req))
        lock = self.lock(last)
        self.unlock(req.lock)
        req.lock, req.last_node = lock, last
        req.kv.cache_protected_len = self.end_of(last)
        in_tree = slice(0, req.kv.cache_protected_len)
        self.req_to_token_pool.write((req.kv.req_pool_idx, in_tree), self.path_device_indices(last))
        if is_over:
            self.listener.on_prompt_cached(self, req, has_row=False)
            if req.last_node is not self.root_node:
                self._extras[req.last_node].tips.append(len(req.origin_input_ids))
        elif is_whole_prompt:
            self.listener.on_prompt_cached(self, req, has_row=True)

    def on_release(self, req: Req, *, checkpointed: bool) -> None:
        """The request gave its row and its lock back: it ended, or it was put back into the queue."""
        self.listener.on_released(req)

    def continue_branch(self, node: TreeNode, prompt_len: int) -> None:
        """A new request was matched down to ``node``: the branch that ended there, if any, goes on in it.

        An agent that rewrites its answers diverges from what it was answered; then the branch whose prompt ends where
        the match does goes on.

        Args:
            node: The last node that was matched.
            prompt_len: Length of the new request's prompt.
        """
        last = node
        while node is not self.root_node:
            extra = self._extras[node]
            if extra.tips:
                extra.tips.pop()
                self._update_users(node)
                return
            if node is last and self._give_up_answer(node, prompt_len):
                return
            node = node.parent

    def _give_up_answer(self, node: TreeNode, prompt_len: int) -> bool:
        """Take back the claim of an answer that follows ``node``, if the new prompt replaces it by another one."""
        for child in node.children.values():
            extra = self._extras[child]
            for prompt_end in extra.tips:
                if prompt_end < prompt_len and prompt_end < extra.start + self.page_size:
                    extra.tips.remove(prompt_end)
                    self._update_users(child)
                    return True
        return False

    def pin(self, node: TreeNode, *, at_most: int) -> bool:
        """Keep the path to ``node`` whole until it is evicted.

        Args:
            node: Last node of the path.
            at_most: Slots that all pinned nodes may hold together.

        Returns:
            Whether the path is pinned; nothing has changed where it is not.
        """
        new = [one for one in self.path(node) if not self._extras[one].pinned]
        size = sum(self.num_live(one) for one in new)
        if size and self._pinned_size + size > at_most:
            return False
        self._pinned_size += size
        for one in new:
            self._extras[one].pinned = True
            self._update_users(one)
        return True

    def shared_until(self, node: TreeNode, peer_prefix_len: int = 0) -> int:
        """Position up to which the path to ``node`` is shared; what follows is private to the one request that locks
        it.

        A node is shared when another request holds it, when another branch continues or may come back to it, or when
        it is pinned; and so
        are all of its ancestors.

        Args:
            node: Last node of a request's path, locked by that request.
            peer_prefix_len: Length of the longest prefix that a waiting request, or one in flight, has in common with
                the path.
        """
        while node is not self.root_node:
            extra = self._extras[node]
            if extra.pinned or extra.num_users > 1:  # the request itself is one
                return max(extra.start + len(node.key), peer_prefix_len)
            node = node.parent
        return peer_prefix_len

    # -- pruning -----------------------------------------------------------------------------------------------------

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
            extra.replace_segment(segment, segment.pruned_to(num_keep))
            if node.lock_ref > 0:
                self.protected_size_ -= num_freed
            else:
                self.evictable_size_ -= num_freed
            if not extra.shared:
                self._private_size -= num_freed
            if self.ledger is not None:
                self.ledger.num_live[segment.ident] = num_keep
        freed = torch.cat(holes)
        torch._foreach_zero_(holes)
        if self.ledger is not None:
            self.ledger.free_slots(freed)
        # Whole pages, each in one piece: wherever the first of them lies, it begins a page.
        self.token_to_kv_pool_allocator.free_segment(freed, start_pos=0)
        return freed

    # -- sizes, locks, eviction: SGLang's rules, in live slots -------------------------------------------------------

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
        extras[last].num_locks += by
        self._update_users(last)
        self.evictable_size_ -= by * num_turned
        self.protected_size_ += by * num_turned
        return num_turned

    def evict(self, params: EvictParams) -> EvictResult:
        """Free ``num_tokens`` live slots, rank by rank of SGLang's eviction policy: let the listener shrink what nobody
        holds, then drop unlocked leaves. What ranks higher is not touched while a lower rank has something to give.
        """
        if self.disable:
            return EvictResult()
        start_time = time.perf_counter()
        num_evicted, wanted = 0, params.num_tokens
        while num_evicted < wanted and self.evictable_leaves:
            rank = min(map(self.eviction_rank, self.evictable_leaves)) if self._has_ranks else None
            found = self.listener.shrink(self, wanted - num_evicted, rank=rank)
            if num_evicted + found < wanted:
                found += self._drop_leaves(wanted - num_evicted - found, rank=rank)
            if not found:
                break
            num_evicted += found
        self.update_eviction_metrics(num_evicted, start_time)
        return EvictResult(num_tokens_evicted=num_evicted)

    def eviction_rank(self, node: TreeNode) -> Any:
        """What SGLang's eviction policy looks at before it looks at the time: the request's priority with ``priority``,
        how often a node was hit with ``lfu`` and ``slru``. None with policies that order by time alone.
        """
        return self.eviction_strategy.get_priority(node)[0] if self._has_ranks else None

    def drop_private_leaves(self, num_tokens: int) -> int:
        """Drop unlocked leaves that one branch at most can use, until ``num_tokens`` slots are free; returns how many
        are.
        """
        return self._drop_leaves(num_tokens, private_only=True)

    def _drop_leaves(self, num_tokens: int, *, rank: Any = None, private_only: bool = False) -> int:
        """Drop leaves until ``num_tokens`` slots are free, in SGLang's order, none of a higher rank."""
        extras, priority = self._extras, self.eviction_strategy.get_priority
        leaves: Iterable[TreeNode] = self.evictable_leaves
        if private_only:
            leaves = (leaf for leaf in leaves if not extras[leaf].shared)
        if rank is not None:
            leaves = (leaf for leaf in leaves if priority(leaf)[0] <= rank)
        heap = [(priority(leaf), leaf) for leaf in leaves]
        heapq.heapify(heap)
        num_dropped = 0
        while heap and num_dropped < num_tokens:
            _, leaf = heapq.heappop(heap)
            slots, extra = self.live_slots(leaf), extras[leaf]
            num_dropped += len(slots)
            self.token_to_kv_pool_allocator.free_segment(slots, start_pos=0)
            if self.ledger is not None and extra.segments:
                self.ledger.free_slots(slots)
                self.ledger.forget(extra.segments)
            self._delete_leaf(leaf)
            parent = leaf.parent
            if not parent.children and parent.lock_ref == 0 and not (private_only and extras[parent].shared):
                order = priority(parent)
                if rank is None or order[0] <= rank:
                    heapq.heappush(heap, (order, parent))
            self.kv_events.record_remove(leaf)
        return num_dropped

    def _delete_leaf(self, node: TreeNode) -> None:
        super()._delete_leaf(node)
        extra = self._extras.pop(node)
        self.evictable_size_ += extra.num_holes
        if not extra.shared:
            self._private_size -= len(node.key) - extra.num_holes
        if extra.pinned:
            self._pinned_size -= len(node.key) - extra.num_holes
        if extra.used or extra.shared:
            above = self._extras[node.parent]
            above.num_used_children -= extra.used
            above.num_shared_children -= extra.shared
            self._update_users(node.parent)

    def _total_size_helper(self) -> int:
        return sum(self.num_live(node) for node in self.nodes())

    def all_values_flatten(self) -> torch.Tensor:
        """All slots of the tree, int64; holes left out."""
        values = [self.live_slots(node) for node in self.nodes()]
        return torch.cat(values) if values else torch.empty(0, dtype=torch.int64, device=self.device)
