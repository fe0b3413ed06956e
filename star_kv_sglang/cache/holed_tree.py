"""The nodes of SGLang's radix tree, with holes: lengths stay logical, only slots are counted live.

Keys match as before. What was pruned is sealed: it is matched whole or not at all, and never split.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from sglang.srt.mem_cache.radix_cache import RadixCache, RadixKey, TreeNode

from star_kv_sglang.cache.ledger import SegmentLedger
from star_kv_sglang.cache.node_extra import NodeExtra
from star_kv_sglang.cache.segments import live_ranges
from star_kv_sglang.cache.sharing import Sharing

if TYPE_CHECKING:
    from sglang.srt.mem_cache.cache_init_params import CacheInitParams

    from star_kv_sglang.cache.message_index import MessageIndex


class HoledTree(RadixCache):
    """RadixCache whose nodes may hold fewer slots than positions.

    Args:
        params: SGLang's construction parameters.
        ledger: Is told about every scored segment, where segments are pruned more than once.

    Attributes:
        sharing: Who uses what of the tree.
        keeps_histories: A request has asked for what its prompts keep: some nodes remember it.
        prune_time: Prunes of such nodes so far.
        messages: Where messages are complete, for prompts that leave some out; set before the first request.
    """

    def __init__(self, params: CacheInitParams, ledger: SegmentLedger | None = None) -> None:
        self._extras: dict[TreeNode, NodeExtra] = {}
        self.keeps_histories = False
        self.prune_time = 0
        self.ledger = ledger
        self.messages: MessageIndex | None = None
        self.sharing = Sharing(self._extras, page_size=params.page_size, ledger=ledger)
        super().__init__(params)

    def reset(self) -> None:
        """Forget everything."""
        super().reset()
        self._extras.clear()
        self._extras[self.root_node] = NodeExtra(start=0, labelled=True)
        self.sharing.clear()
        if self.ledger is not None:
            self.ledger.clear()
        if self.messages is not None:
            self.messages.clear()

    def extra(self, node: TreeNode) -> NodeExtra:
        """The side record of a node of this tree."""
        return self._extras[node]

    def end_of(self, node: TreeNode) -> int:
        """Absolute position after the node's last token."""
        return self._extras[node].start + len(node.key)

    def num_live(self, node: TreeNode) -> int:
        """Slots that the node owns."""
        return len(node.key) - self._extras[node].num_holes

    def num_holes(self, path: Sequence[TreeNode]) -> int:
        """Positions without a slot of all nodes of a path."""
        return sum(self._extras[node].num_holes for node in path)

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

    def holds(self, node: TreeNode) -> bool:
        """Whether it is a node of this tree and was not dropped."""
        return node in self._extras

    def find(self, ident: int) -> TreeNode | None:
        """The node with SGLang's number ``ident``; None where it was dropped."""
        return next((node for node in self._extras if node.id == ident), None)

    @property
    def num_nodes(self) -> int:
        """Nodes, the root not counted."""
        return len(self._extras) - 1

    def nodes(self) -> Iterator[TreeNode]:
        """All nodes but the root, parents first."""
        stack = list(self.root_node.children.values())
        while stack:
            node = stack.pop()
            yield node
            stack.extend(node.children.values())

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
            matched = self.splittable_length(child, matched)
            if matched:
                node = self._split_node(child.key, child, matched)
                values.append(node.value)
            break
        return values, node

    def splittable_length(self, node: TreeNode, length: int) -> int:
        """Largest page-aligned length, at most ``length``, at which the node may be split: not in a sealed segment."""
        extra = self._extras[node]
        position = extra.start + length
        for segment in reversed(extra.segments):
            if segment.sealed and segment.start < position < segment.end:
                position = max(extra.start, segment.start // self.page_size * self.page_size)
        return position - extra.start

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
            allowed = matched if whole else self.splittable_length(child, matched)
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
        self.sharing.added(last)
        return done, last

    def _split_node(self, key: RadixKey, child: TreeNode, split_len: int) -> TreeNode:
        extra = self._extras[child]
        before = extra.segments
        upper = extra.split(extra.start + split_len, self.page_size)
        node: TreeNode = super()._split_node(key, child, split_len)
        self._extras[node] = upper
        if self.messages is not None:
            self.messages.moved(upper.marks or (), node)
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

    def _delete_leaf(self, node: TreeNode) -> None:
        super()._delete_leaf(node)
        extra = self._extras.pop(node)
        if self.messages is not None:
            self.messages.removed(extra.marks or ())
        self.evictable_size_ += extra.num_holes
        self.sharing.removed(node, extra)

    def _total_size_helper(self) -> int:
        return sum(self.num_live(node) for node in self.nodes())

    def all_values_flatten(self) -> torch.Tensor:
        """All slots of the tree, int64; holes left out."""
        values = [self.live_slots(node) for node in self.nodes()]
        return torch.cat(values) if values else torch.empty(0, dtype=torch.int64, device=self.device)
