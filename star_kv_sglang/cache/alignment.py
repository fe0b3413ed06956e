"""Lays a prompt that lacks whole screenshots beside a branch of the tree that has them."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from sglang.srt.mem_cache.radix_cache import RadixKey

from star_kv_sglang.cache.message_index import NONE_YET, Chains, Mark, MessageIndex, Namespace, chains_behind
from star_kv_sglang.cache.messages import Message, messages_between, num_saved_steps
from star_kv_sglang.cache.segments import Frame

if TYPE_CHECKING:
    from sglang.srt.mem_cache.radix_cache import TreeNode

    from star_kv_sglang.cache.holed_tree import HoledTree

_Pairs = list[tuple[Message | None, Mark, bool]]
"""Messages of a branch, what stands for each in a prompt, and whether it is the same."""
_DROPPED = 0
"""The form in which nothing stands for a message with screenshots."""
MOST_TRIED = 64
"""Places of the tree that are tried for a prompt."""


@dataclass(frozen=True)
class Fit:
    """A branch that a prompt lies on, with what it has left out.

    Attributes:
        left_out: The screenshots that the prompt lacks, at their positions in the tree.
        frames: All screenshots of the tree up to the last one of them.
        sent: Length of the part of the prompt that ends with the last one of them, or what stands for it.
        held: Length of that part in the tree.
        num_steps: How much farther M-RoPE's positions are behind it than the prompt's own.
        shifts: Of messages with screenshots in that part which the prompt has: its position in the prompt, and how much
            farther it lies in the tree.
        last: The node that holds the end of that part.
        num_branches: Branches that the prompt fits equally well; this is the one that was used last.
    """

    left_out: tuple[Frame, ...]
    frames: tuple[Frame, ...]
    sent: int
    held: int
    num_steps: int
    shifts: tuple[tuple[Message, int], ...]
    last: TreeNode
    num_branches: int = 1


@dataclass(frozen=True)
class _Tail:
    """How far a branch goes on as a prompt does behind a place.

    Attributes:
        length: Tokens that both have.
        is_whole: The branch ends there, or one that may come back does.
        is_lost: A screenshot in it was pruned because a client had left it out.
    """

    length: int
    is_whole: bool
    is_lost: bool


class Alignment:
    """One prompt, and the branches that it may lie on.

    Args:
        tree: The tree.
        index: Its marks.
        ids: Of the prompt.
        frames: Its screenshots.
    """

    def __init__(self, tree: HoledTree, index: MessageIndex, ids: array[int], frames: Sequence[Frame]) -> None:
        self._tree = tree
        self._index = index
        self._ids = ids
        self._frames = frames
        self._messages = messages_between(ids, frames, 0, len(ids), start_token=index.start_token)
        self._chains: list[Chains] = []
        self._newest: list[bytes] = []
        chains, newest = index.begin, NONE_YET
        for message in self._messages:
            chains = chains_behind(chains, message, index.stand_of(message) if message.frames else None)
            newest = message.content if message.frames else newest
            self._chains.append(chains)
            self._newest.append(newest)

    def best(self, namespace: Namespace) -> Fit | None:
        """The branch that has most of the prompt, if the prompt leaves a screenshot of it out.

        None where the prompt is an ordinary one of its branch, or lies on none. Among branches that have equally much
        of it the one that was used last is chosen.
        """
        num_tried = 0
        for number in range(len(self._messages), 0, -1):
            found: list[tuple[int, bool, float, _Pairs]] = []
            for form, mark in self._index.candidates(namespace, self._chains[number - 1], self._newest[number - 1]):
                num_tried += 1
                pairs = self._pairs(mark, number, form)
                tail = None if pairs is None else self._tail(mark, number, pairs, namespace)
                if pairs is not None and tail is not None:
                    is_ordinary = all(is_kept for _, _, is_kept in pairs)
                    found.append((tail, is_ordinary, mark.node.last_access_time, pairs))
            if found:
                best = max(found, key=lambda one: one[:3])
                return None if best[1] else self._fit(best[3], sum(one[:2] == best[:2] for one in found))
            if num_tried > MOST_TRIED:
                break
        return None

    def is_lost(self, namespace: Namespace) -> bool:
        """Whether the tree has pruned a screenshot that the prompt sends, because a client had left it out."""
        return self._follow(self._tree.root_node, 0, 0, namespace).is_lost

    def _pairs(self, mark: Mark, number: int, form: int) -> _Pairs | None:
        """The prompt's first ``number`` messages beside the branch that ends with a mark, the newest first; None where
        they do not agree.
        """
        pairs: _Pairs = []
        sent, at = number - 1, mark
        while True:
            message = self._messages[sent] if sent >= 0 else None
            if message is not None and message.content == at.message.content:
                pairs.append((message, at, True))
                sent -= 1
            elif not at.message.frames:
                return None
            elif form == _DROPPED:
                pairs.append((None, at, False))
            elif message is not None and message.content == at.replaced:
                pairs.append((message, at, False))
                sent -= 1
            else:
                return None
            if at.above is None:
                return pairs if sent < 0 else None
            at = at.above

    def _tail(self, mark: Mark, number: int, pairs: _Pairs, namespace: Namespace) -> int | None:
        """How far the branch goes on as the prompt does; None where it cannot be told that the prompt lies on it, or
        where it has lost what the prompt sends.
        """
        offset = mark.message.end - self._tree.extra(mark.node).start
        tail = self._follow(mark.node, offset, self._messages[number - 1].end, namespace)
        # Nothing stands for a message that was dropped: only what follows it tells that the prompt lies behind it.
        ends_dropped = pairs[0][0] is None
        if tail.is_lost or (ends_dropped and not tail.is_whole) or self._has_lost(mark, pairs):
            return None
        # A prompt is matched in whole pages, and what it leaves out has to lie in them.
        matched = mark.message.end + tail.length
        held = next((at.message.end for _, at, is_kept in pairs if not is_kept), 0)
        return tail.length if matched - matched % self._tree.page_size >= held else None

    def _fit(self, pairs: _Pairs, num_branches: int) -> Fit:
        """What a pairing says of the prompt."""
        last = next(index for index, (_, _, is_kept) in enumerate(pairs) if not is_kept)
        # In the order of position, up to the last that was left out.
        upto = pairs[last:][::-1]
        mark = upto[-1][1]
        sent = next((message.end for message, _, _ in reversed(upto) if message is not None), 0)
        steps_sent = sent - num_saved_steps(frame for frame in self._frames if frame.start < sent)
        return Fit(
            left_out=tuple(frame for _, at, is_kept in upto if not is_kept for frame in at.message.frames),
            frames=tuple(frame for _, at, _ in upto for frame in at.message.frames),
            sent=sent,
            held=mark.message.end,
            num_steps=mark.num_steps - steps_sent,
            shifts=tuple(
                (message, at.message.start - message.start)
                for message, at, is_kept in upto
                if message is not None and is_kept and message.frames
            ),
            last=mark.node,
            num_branches=num_branches,
        )

    def _has_lost(self, mark: Mark, pairs: _Pairs) -> bool:
        """Whether a screenshot that the prompt sends was pruned because a client had left it out."""
        if not self._index.any_lost:
            return False
        lost: set[int] = set()
        node = mark.node
        while node is not self._tree.root_node:
            lost |= self._tree.extra(node).lost
            node = node.parent
        return any(frame.start in lost for _, at, is_kept in pairs if is_kept for frame in at.message.frames)

    def _follow(self, node: TreeNode, offset: int, start: int, namespace: Namespace) -> _Tail:
        """Go down from a place of the tree as far as it has the prompt's ids from ``start`` on."""
        tree, ids, position = self._tree, self._ids, start
        while True:
            extra = tree.extra(node)
            tokens = ids[:0] if node is tree.root_node else node.key.raw_token_ids()
            num_equal = _num_equal(tokens, offset, ids, position)
            position += num_equal
            end = extra.start + offset + num_equal
            if any(extra.start + offset <= first < end for first in extra.lost):
                return _Tail(position - start, is_whole=False, is_lost=True)
            if offset + num_equal < len(tokens):
                return _Tail(position - start, is_whole=False, is_lost=False)
            following = RadixKey(ids[position : position + tree.page_size], *_names(namespace))
            is_page = len(following) == tree.page_size
            child = node.children.get(following.child_key(tree.page_size)) if is_page else None
            if child is None:
                is_end = not node.children or bool(extra.pending_branches)
                return _Tail(position - start, is_whole=is_end and position > start, is_lost=False)
            node, offset = child, 0


def _names(namespace: Namespace) -> tuple[str | None, bool, None, str | None]:
    extra_key, cache_salt = namespace
    return extra_key, False, None, cache_salt


def _num_equal(tokens: array[int], start: int, others: array[int], other_start: int) -> int:
    """Tokens that both have from these places on."""
    one = np.frombuffer(tokens, dtype=np.int64)[start:] if len(tokens) else np.empty(0, np.int64)
    other = np.frombuffer(others, dtype=np.int64)[other_start:]
    length = min(len(one), len(other))
    differs = one[:length] != other[:length]
    first = int(differs.argmax()) if length else 0
    return first if length and differs[first] else length
