"""Looking keys up without changing the tree: no node is split, and none becomes more recent."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sglang.srt.mem_cache.radix_cache import RadixKey, TreeNode

    from star_kv_sglang.cache.holed_tree import HoledTree
    from star_kv_sglang.cache.radix_cache import StarRadixCache


def descend(tree: StarRadixCache, key: RadixKey) -> Iterator[tuple[TreeNode, int]]:
    """Nodes along ``key`` and how much of each it matches; the last may match in part."""
    node, rest = tree.root_node, key
    while len(rest) > 0:
        child = node.children.get(rest.child_key(tree.page_size))
        if child is None:
            return
        matched = child.key.match(rest, page_size=tree.page_size)
        yield child, matched
        if matched < len(child.key):
            return
        node, rest = child, rest[matched:]


def nodes_along(tree: StarRadixCache, key: RadixKey) -> list[TreeNode]:
    """Nodes that hold a beginning of ``key``, or of what follows the node before."""
    return [node for node, matched in descend(tree, key.page_aligned(tree.page_size)) if matched]


def held_length(tree: StarRadixCache, key: RadixKey) -> int:
    """How much of ``key`` lies in the tree, sealed or not."""
    return sum(matched for _, matched in descend(tree, key.page_aligned(tree.page_size)))


def ids_of_path(tree: HoledTree, last: TreeNode, length: int) -> array[int]:
    """The first ids of the path to a node, in which they end."""
    *path, end = tree.path(last)
    ids = array("q")
    for node in path:
        ids += node.key.raw_token_ids()
    ids += end.key.raw_token_ids()[: length - len(ids)]
    return ids
