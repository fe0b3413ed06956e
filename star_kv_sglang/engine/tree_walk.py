"""The tree, read a piece at a time: between two pieces the scheduler runs what it has to run."""

from __future__ import annotations

import time
import weakref
from collections import deque
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from star_kv_sglang.introspection.protocol import LOCKED, PENDING, PINNED, SHARED, image_key

if TYPE_CHECKING:
    from sglang.srt.mem_cache.radix_cache import TreeNode

    from star_kv_sglang.cache.radix_cache import StarRadixCache

PIECE_S = 0.002
"""A piece ends after this time, so that no step waits longer than for a short one of its own."""
MOST_NODES = 1_000
"""And after so many nodes, so that its answer stays small."""
_BETWEEN_LOOKS = 16
"""Nodes that are read before the clock is looked at."""


class TreeWalk:
    """One walk, parents before their children, layer by layer: what is left out of a tree that is too large lies deep.

    The tree may change between two pieces. What is gone then is left out, what came is missing in places, and
    `is_torn` says so: the next walk has it right. A walk that nobody goes on with keeps no node alive, nor its slots.

    Args:
        tree: The tree.
    """

    def __init__(self, tree: StarRadixCache) -> None:
        self._tree = tree
        self._started_at = time.monotonic()
        self._todo: deque[weakref.ref[TreeNode]] = deque(_weak(tree.root_node.children.values()))
        self._told: set[int] = {tree.root_node.id}
        self._size = tree.num_nodes

    @property
    def is_over(self) -> bool:
        """Whether every node has been read."""
        return not self._todo

    @property
    def is_torn(self) -> bool:
        """Whether the tree had another number of nodes when the walk began."""
        return self._size != self._tree.num_nodes

    def piece(self, *, most_nodes: int = MOST_NODES, seconds: float = PIECE_S) -> list[list[Any]]:
        """The next nodes, each with `protocol.NODE_FIELDS`."""
        ends_at = time.perf_counter() + seconds
        tree, todo, told = self._tree, self._todo, self._told
        found: list[list[Any]] = []
        while todo and len(found) < most_nodes:
            node = todo.popleft()()
            if node is not None and tree.holds(node) and node.id not in told:
                if node.parent.id not in told:
                    # It was split meanwhile: its upper part is new.
                    todo.extendleft(_weak((node, node.parent)))
                    continue
                told.add(node.id)
                found.append(self._told_of(node))
                todo.extend(_weak(node.children.values()))
            if len(found) % _BETWEEN_LOOKS == 0 and time.perf_counter() > ends_at:
                break
        return found

    def _told_of(self, node: TreeNode) -> list[Any]:
        extra, parent = self._tree.extra(node), node.parent
        length = len(node.key)
        flags = (
            SHARED * extra.shared
            + PINNED * extra.pinned
            + LOCKED * (node.lock_ref > 0)
            + PENDING * bool(extra.pending_branches)
        )
        frames = [
            [
                image_key(segment.frame.image_hash),
                segment.frame.start,
                segment.frame.rows,
                segment.frame.cols,
                segment.start,
                segment.end,
                segment.end - segment.start - segment.num_holes,
            ]
            for segment in extra.segments
        ]
        return [
            node.id,
            0 if parent is self._tree.root_node else parent.id,
            extra.start,
            length,
            length - extra.num_holes,
            flags,
            extra.num_cuts,
            extra.num_users,
            round(max(0.0, self._started_at - node.last_access_time), 1),
            frames,
        ]


def _weak(nodes: Iterable[TreeNode]) -> Iterable[weakref.ref[TreeNode]]:
    return map(weakref.ref, nodes)
