"""What goes when the pool runs short, in SGLang's order: slots that can be spared first, then whole leaves."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sglang.srt.mem_cache.radix_cache import TreeNode

    from star_kv_sglang.cache.radix_cache import StarRadixCache


class Eviction:
    """Frees slots of a tree, rank by rank: what ranks higher is not touched while a lower rank has something to give.

    Args:
        tree: The tree.
    """

    def __init__(self, tree: StarRadixCache) -> None:
        self._tree = tree
        self._priority = tree.eviction_strategy.get_priority
        self._has_ranks = isinstance(self._priority(tree.root_node), tuple)

    def rank_of(self, node: TreeNode) -> Any:
        """What SGLang's eviction policy looks at before it looks at the time: the request's priority with ``priority``,
        how often a node was hit with ``lfu`` and ``slru``. None with policies that order by time alone.
        """
        return self._priority(node)[0] if self._has_ranks else None

    def free(self, num_tokens: int, shrink: Callable[[int, Any], int]) -> int:
        """Free live slots of what nobody holds.

        Args:
            num_tokens: Slots that are wanted.
            shrink: Asked first, rank by rank: frees up to so many slots of nodes that do not rank higher, and returns
                how many it has freed.

        Returns:
            Slots that were freed.
        """
        leaves, num_freed = self._tree.evictable_leaves, 0
        while num_freed < num_tokens and leaves:
            rank = min(map(self.rank_of, leaves)) if self._has_ranks else None
            found = shrink(num_tokens - num_freed, rank)
            if num_freed + found < num_tokens:
                found += self.drop_leaves(num_tokens - num_freed - found, rank=rank)
            if not found:
                break
            num_freed += found
        return num_freed

    def drop_leaves(self, num_tokens: int, *, rank: Any = None, private_only: bool = False) -> int:
        """Drop unlocked leaves until ``num_tokens`` slots are free.

        Args:
            num_tokens: Slots that are wanted.
            rank: None of a higher rank goes; None: there are no ranks, or they do not matter.
            private_only: Only leaves that one branch at most can use.

        Returns:
            Slots that were freed.
        """
        tree, priority = self._tree, self._priority
        leaves: Iterable[TreeNode] = tree.evictable_leaves
        if private_only:
            leaves = (leaf for leaf in leaves if not tree.extra(leaf).shared)
        if rank is not None:
            leaves = (leaf for leaf in leaves if priority(leaf)[0] <= rank)
        heap = [(priority(leaf), leaf) for leaf in leaves]
        heapq.heapify(heap)
        num_dropped = 0
        while heap and num_dropped < num_tokens:
            _, leaf = heapq.heappop(heap)
            num_dropped += tree.drop_leaf(leaf)
            parent = leaf.parent
            if not parent.children and parent.lock_ref == 0 and not (private_only and tree.extra(parent).shared):
                order = priority(parent)
                if rank is None or order[0] <= rank:
                    heapq.heappush(heap, (order, parent))
        return num_dropped
