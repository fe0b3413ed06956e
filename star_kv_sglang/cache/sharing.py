"""Who uses what of the tree: requests that run, branches that may come back, prefixes that are kept whole.

Plain bookkeeping on the nodes' side records; nothing here knows a slot.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sglang.srt.mem_cache.radix_cache import TreeNode

    from star_kv_sglang.cache.ledger import SegmentLedger
    from star_kv_sglang.cache.node_extra import NodeExtra


class Sharing:
    """Tells shared nodes, which must stay whole, from private ones, which may be pruned.

    A node's users are the requests that end in it, the pending branches that may come back to it, and its children that
    have users. It is shared when it has several, when it is pinned, and when a child is. A node without users, such as
    an answer that its agent has rewritten, shares nothing.

    Args:
        extras: The side record of every node, the root's too; the tree adds and removes them.
        page_size: Of the tree.
        ledger: Is told which scored segments are shared, where there is one.

    Attributes:
        private_size: Slots of all nodes that no more than one branch can use.
        pinned_size: Slots of all pinned nodes: they are shared, so that none is pruned, and go when they are evicted.
    """

    def __init__(
        self, extras: Mapping[TreeNode, NodeExtra], *, page_size: int, ledger: SegmentLedger | None = None
    ) -> None:
        self._extras = extras
        self._page_size = page_size
        self._ledger = ledger
        self.clear()

    def clear(self) -> None:
        """The tree is empty."""
        self.private_size = 0
        self.pinned_size = 0

    def added(self, node: TreeNode) -> None:
        """A new leaf holds slots and has no user yet."""
        self.private_size += len(node.key)

    def removed(self, node: TreeNode, extra: NodeExtra) -> None:
        """A leaf is gone; its record is no longer among the others, its parent's still is."""
        num_live = len(node.key) - extra.num_holes
        if not extra.shared:
            self.private_size -= num_live
        if extra.pinned:
            self.pinned_size -= num_live
        if extra.used or extra.shared:
            above = self._extras[node.parent]
            above.num_used_children -= extra.used
            above.num_shared_children -= extra.shared
            self._update(node.parent)

    def pruned(self, extra: NodeExtra, num_freed: int) -> None:
        """A node has lost slots."""
        if not extra.shared:
            self.private_size -= num_freed

    def hold(self, node: TreeNode, by: int) -> None:
        """A request ends in the node now, ``by`` 1, or no longer, -1."""
        self._extras[node].num_locks += by
        self._update(node)

    def end_branch(self, node: TreeNode, prompt_len: int) -> None:
        """A request has ended with the node, which it still holds: its branch may come back to it.

        Args:
            node: Where its sequence ends.
            prompt_len: Length of its prompt; what follows is its answer.
        """
        self._extras[node].pending_branches.append(prompt_len)

    def continue_branch(self, node: TreeNode, prompt_len: int) -> None:
        """A new request was matched down to ``node``: the branch that ended there, if any, goes on in it.

        An agent that rewrites its answers diverges from what it was answered; then the branch whose prompt ends where
        the match does goes on.

        Args:
            node: The last node that was matched.
            prompt_len: Length of the new request's prompt.
        """
        last = node
        while node.parent is not None:
            extra = self._extras[node]
            if extra.pending_branches:
                extra.pending_branches.pop()
                self._update(node)
                return
            if node is last and self._give_up_answer(node, prompt_len):
                return
            node = node.parent

    def _give_up_answer(self, node: TreeNode, prompt_len: int) -> bool:
        """Take back the claim of an answer that follows ``node``, if the new prompt replaces it by another one."""
        for child in node.children.values():
            extra = self._extras[child]
            for prompt_end in extra.pending_branches:
                if prompt_end < prompt_len and prompt_end < extra.start + self._page_size:
                    extra.pending_branches.remove(prompt_end)
                    self._update(child)
                    return True
        return False

    def pin(self, path: Sequence[TreeNode], *, at_most: int) -> bool:
        """Keep a path whole until it is evicted.

        Args:
            path: Nodes from the root's child down.
            at_most: Slots that all pinned nodes may hold together.

        Returns:
            Whether the path is pinned; nothing has changed where it is not.
        """
        new = [node for node in path if not self._extras[node].pinned]
        size = sum(len(node.key) - self._extras[node].num_holes for node in new)
        if size and self.pinned_size + size > at_most:
            return False
        self.pinned_size += size
        for node in new:
            self._extras[node].pinned = True
            self._update(node)
        return True

    def shared_until(self, path: Sequence[TreeNode]) -> int:
        """Position up to which a path is shared; what follows is private to the one request that locks its last node.

        Args:
            path: Nodes from the root's child down to where the request ends.
        """
        for node in reversed(path):
            extra = self._extras[node]
            if extra.pinned or extra.num_users > 1:  # the request itself is one
                return extra.start + len(node.key)
        return 0

    def _update(self, node: TreeNode) -> None:
        """Somebody began or ceased to use the node: decide anew whether it is used and shared, and its ancestors as far
        as that changes.
        """
        extras = self._extras
        extra = extras[node]
        while (parent := node.parent) is not None:
            users = extra.num_locks + len(extra.pending_branches) + extra.num_used_children
            used, shared = users > 0, users > 1 or extra.pinned or extra.num_shared_children > 0
            if used is extra.used and shared is extra.shared:
                return
            above = extras[parent]
            if used is not extra.used:
                above.num_used_children += 1 if used else -1
                extra.used = used
            if shared is not extra.shared:
                above.num_shared_children += 1 if shared else -1
                extra.shared = shared
                num_live = len(node.key) - extra.num_holes
                self.private_size += -num_live if shared else num_live
                if self._ledger is not None:
                    self._ledger.set_shared(extra.segments, shared)
            node, extra = parent, above
