"""Finds the branches of a tree that a prompt would lie on if it had left no screenshot out.

Every place of the tree where a message is complete has a mark, which is found by what comes before it without the
screenshots: a prompt that lacks some of them leads to the same marks. What stands for a left-out screenshot is a form:
nothing, where its whole message is gone, or a text in its place.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from heapq import nlargest
from typing import TYPE_CHECKING

from star_kv_sglang.cache.messages import Message, messages_between, num_saved_steps
from star_kv_sglang.cache.segments import Frame

if TYPE_CHECKING:
    from sglang.srt.mem_cache.radix_cache import TreeNode

    from star_kv_sglang.cache.holed_tree import HoledTree

Namespace = tuple[str | None, str | None]
"""A request's extra key and cache salt."""
Chains = tuple[int | None, ...]
"""Of each form, a hash of everything up to a place without its screenshots; None where that is not known. It leads to
places that are then compared message by message."""
Replace = Callable[["array[int]", Message], bytes]
"""The content of the message that a client sends in the place of one with screenshots."""
MOST_BRANCHES = 16
"""Branches that are tried in one place, the most recently used ones."""
NONE_YET = b""
"""In the place of a content: nothing was there before."""
_BEGIN = 0
_ANY = None


class Mark:
    """A place of the tree where a message is complete.

    Attributes:
        message: The message, at its positions in the tree.
        above: The mark of the message before it; None at the first one.
        replaced: Content of the message that stands for it where its screenshots are replaced by a text; None where it
            has none, or nothing is replaced.
        chains: Of each form.
        newest: Content of the newest message with screenshots up to here; empty where there was none.
        node: The node that holds the token which begins the next message.
        num_steps: How far M-RoPE's positions are behind the message.
    """

    __slots__ = ("above", "chains", "message", "newest", "node", "num_steps", "replaced")

    def __init__(
        self, message: Message, above: Mark | None, replaced: bytes | None, node: TreeNode, begin: Chains
    ) -> None:
        self.message, self.above, self.replaced, self.node = message, above, replaced, node
        before, newest = (begin, NONE_YET) if above is None else (above.chains, above.newest)
        self.chains: Chains = chains_behind(before, message, replaced)
        self.newest: bytes = message.content if message.frames else newest
        before_it = 0 if above is None else above.num_steps
        self.num_steps: int = before_it + message.end - message.start - num_saved_steps(message.frames)


def chains_behind(before: Chains, message: Message, replaced: bytes | None) -> Chains:
    """The chains behind a message: a screenshot's message counts for nothing, or for what stands in its place."""
    dropping, replacing = before
    if not message.frames and dropping is not None:
        dropping = hash((dropping, message.content))
    stands = replaced if message.frames else message.content
    replacing = None if replacing is None or stands is None else hash((replacing, stands))
    return dropping, replacing


class MessageIndex:
    """The marks of a tree, by what comes before them.

    Args:
        start_token: The token that begins every message.
        replace: Tells what stands for a message with screenshots, where clients replace them by a text.

    Attributes:
        start_token: Likewise.
        begin: Chains before the first message.
        any_lost: Something that a client has left out was pruned since the tree was empty.
    """

    def __init__(self, start_token: int, replace: Replace | None = None) -> None:
        self.start_token = start_token
        self._replace = replace
        self.begin: Chains = (_BEGIN, None if replace is None else _BEGIN)
        self.clear()

    def clear(self) -> None:
        """The tree is empty."""
        self.any_lost = False
        self._marks: dict[tuple[object, ...], dict[Mark, None]] = {}
        self._namespaces: dict[Mark, Namespace] = {}
        self._stands: dict[bytes, bytes] = {}
        self._num_shown: Counter[bytes] = Counter()

    @property
    def num_marks(self) -> int:
        """Places that are known."""
        return len(self._namespaces)

    def note(
        self, tree: HoledTree, path: Sequence[TreeNode], ids: array[int], frames: Sequence[Frame], namespace: Namespace
    ) -> None:
        """A request has stored something: mark the new nodes at the end of its path.

        Args:
            tree: The tree.
            path: Nodes from the root's child down.
            ids: Of the request, at least as many as the path has.
            frames: All screenshots of the path.
            namespace: Of the request.
        """
        known = next((i for i in range(len(path), 0, -1) if tree.extra(path[i - 1]).marks is not None), 0)
        if known == len(path):
            return
        above = _last_mark(tree, path[:known])
        start = 0 if above is None else above.message.end
        end = tree.end_of(path[-1])
        messages = iter(messages_between(ids, frames, start, end, start_token=self.start_token))
        message = next(messages, None)
        for node in path[known:]:
            marks: list[Mark] = []
            while message is not None and message.end < tree.end_of(node):
                above = Mark(message, above, self._stand(ids, message), node, self.begin)
                marks.append(above)
                self._add(above, namespace)
                message = next(messages, None)
            tree.extra(node).marks = marks

    def moved(self, marks: Iterable[Mark], node: TreeNode) -> None:
        """A node was split, and its upper part is ``node``."""
        for mark in marks:
            mark.node = node

    def removed(self, marks: Iterable[Mark]) -> None:
        """A node is gone."""
        for mark in marks:
            for key in _keys(mark, self._namespaces.pop(mark)):
                bucket = self._marks[key]
                del bucket[mark]
                if not bucket:
                    del self._marks[key]
            if mark.replaced is not None:
                self._num_shown[mark.message.content] -= 1
                if not self._num_shown[mark.message.content]:
                    del self._num_shown[mark.message.content], self._stands[mark.message.content]

    def stand_of(self, message: Message) -> bytes | None:
        """What stands for a message with screenshots, where one like it is stored."""
        return self._stands.get(message.content)

    def candidates(self, namespace: Namespace, chains: Chains, newest: bytes) -> Iterator[tuple[int, Mark]]:
        """The marks before which nothing stands but what a prompt has, and screenshots; each with its form.

        Args:
            namespace: Of the prompt.
            chains: Of the prompt, behind one of its messages.
            newest: Its newest message with screenshots up to there.
        """
        for form, chain in enumerate(chains):
            if chain is None:
                continue
            same = self._marks.get((namespace, form, chain, newest), {})
            others = self._marks.get((namespace, form, chain, _ANY), {})
            yield from ((form, mark) for mark in _most_recent(same))
            yield from ((form, mark) for mark in _most_recent(others) if mark not in same)

    def _stand(self, ids: array[int], message: Message) -> bytes | None:
        if self._replace is None or not message.frames:
            return None
        known = self._stands.get(message.content)
        if known is None:
            known = self._stands[message.content] = self._replace(ids, message)
        self._num_shown[message.content] += 1
        return known

    def _add(self, mark: Mark, namespace: Namespace) -> None:
        self._namespaces[mark] = namespace
        for key in _keys(mark, namespace):
            self._marks.setdefault(key, {})[mark] = None


def _keys(mark: Mark, namespace: Namespace) -> Iterator[tuple[object, ...]]:
    for form, chain in enumerate(mark.chains):
        if chain is not None:
            yield namespace, form, chain, mark.newest
            yield namespace, form, chain, _ANY


def _most_recent(marks: dict[Mark, None]) -> list[Mark]:
    if len(marks) <= MOST_BRANCHES:
        return list(marks)
    return nlargest(MOST_BRANCHES, marks, key=lambda mark: mark.node.last_access_time)


def _last_mark(tree: HoledTree, path: Sequence[TreeNode]) -> Mark | None:
    for node in reversed(path):
        marks = tree.extra(node).marks
        if marks:
            return marks[-1]
    return None
