"""Prompts of requests that wait or are in flight, as a tree, so that no two of them are compared more than once."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

Tokens = npt.NDArray[np.int64]
Namespace = tuple[str | None, str | None]


class Prompted(Protocol):
    """What is read of SGLang's request."""

    @property
    def origin_input_ids(self) -> array[int]: ...

    @property
    def extra_key(self) -> str | None: ...

    @property
    def cache_salt(self) -> str | None: ...


class _Run:
    """A node of the tree: a run of tokens that the same prompts have in common.

    Attributes:
        tokens: int64 [n], the run; a copy, as the prompt that brought it may be gone before the run.
        end: Length of the prefix that ends with it.
        above: The run before it; None for a root, which has no tokens.
        below: The runs behind it, by their first token.
        num_users: Prompts that begin with this prefix.
    """

    __slots__ = ("above", "below", "end", "num_users", "tokens")

    def __init__(self, tokens: Tokens, end: int, above: _Run | None, num_users: int) -> None:
        self.tokens = tokens
        self.end = end
        self.above = above
        self.below: dict[int, _Run] = {}
        self.num_users = num_users


@dataclass(frozen=True, slots=True)
class _Known:
    """A prompt in the tree.

    Attributes:
        tokens: The request's own array: while it is held here, no other array can be taken for it.
        extra_key, cache_salt: Its namespace.
        last: The run that it ends with.
    """

    tokens: array[int]
    extra_key: str | None
    cache_salt: str | None
    last: _Run

    def is_of(self, req: Prompted) -> bool:
        """Whether the request still has this prompt."""
        return (
            req.origin_input_ids is self.tokens
            and req.extra_key == self.extra_key
            and req.cache_salt == self.cache_salt
        )


class WaitingPrompts:
    """Knows the prompts that wait or are in flight and how much each has in common with any other.

    It learns who waits when it is asked: SGLang changes its queue in many places, and a look at 500 requests costs a
    tenth of a millisecond. A prompt is walked once when it is new and once when it is gone. Requests are known by their
    number alone, so that none, nor its images, is kept alive; prompts of those that are gone stay until the next look.
    """

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Forget everything."""
        self._known: dict[int, _Known] = {}
        self._roots: dict[Namespace, _Run] = {}

    @property
    def num_prompts(self) -> int:
        """Prompts that were there when it was asked last."""
        return len(self._known)

    @property
    def num_runs(self) -> int:
        """Runs that the tree consists of, without the roots."""
        return sum(1 for _ in self._runs())

    @property
    def num_tokens(self) -> int:
        """Tokens that the tree holds."""
        return sum(len(run.tokens) for run in self._runs())

    def shared_prefix_len(self, req: Prompted, others: Iterable[Prompted]) -> int:
        """Longest prefix that a request's prompt has in common with the prompt of another one in its namespace.

        Args:
            req: The request.
            others: All that wait or are in flight; the request may be one of them.
        """
        self._look({id(prompted): prompted for prompted in (req, *others)})
        run = self._known[id(req)].last
        while run.num_users < 2 and run.above is not None:
            run = run.above
        return run.end

    def _look(self, present: dict[int, Prompted]) -> None:
        """Drop the prompts that are gone, or whose request has another one now, and take in the new ones."""
        known = self._known
        gone = [
            number
            for number, prompt in known.items()
            if (found := present.get(number)) is None or not prompt.is_of(found)
        ]
        for number in gone:
            self._remove(known.pop(number))
        for number, req in present.items():
            if number not in known:
                last = self._add(req.origin_input_ids, (req.extra_key, req.cache_salt))
                known[number] = _Known(req.origin_input_ids, req.extra_key, req.cache_salt, last)

    def _add(self, prompt: array[int], namespace: Namespace) -> _Run:
        """Walk a prompt down and return the run that it ends with, which is made if there is none."""
        tokens = np.asarray(prompt, dtype=np.int64)
        run = self._roots.setdefault(namespace, _Run(tokens[:0].copy(), 0, None, 0))
        run.num_users += 1
        while run.end < len(tokens):
            tail = tokens[run.end :]
            following = run.below.get(int(tail[0]))
            if following is None:
                following = _Run(tail.copy(), len(tokens), run, 0)
                run.below[int(tail[0])] = following
            else:
                num_equal = _num_equal(following.tokens, tail)
                if num_equal < len(following.tokens):
                    following = _split(following, num_equal)
            following.num_users += 1
            run = following
        return run

    def _remove(self, prompt: _Known) -> None:
        """Take a prompt out, with the runs that only it has used."""
        run: _Run | None = prompt.last
        lowest: _Run | None = None
        while run is not None:
            run.num_users -= 1
            if run.num_users:
                lowest = lowest or run
            elif run.above is not None:
                del run.above.below[int(run.tokens[0])]
            else:
                del self._roots[prompt.extra_key, prompt.cache_salt]
            run = run.above
        if lowest is not None:
            _join_with_only(lowest)

    def _runs(self) -> Iterator[_Run]:
        left = [run for root in self._roots.values() for run in root.below.values()]
        while left:
            run = left.pop()
            yield run
            left += run.below.values()


def _split(run: _Run, at: int) -> _Run:
    """Cut a run behind ``at`` of its tokens and return the new upper part; prompts that end with the run still do."""
    upper = _Run(run.tokens[:at].copy(), run.end - len(run.tokens) + at, run.above, run.num_users)
    if run.above is not None:
        run.above.below[int(upper.tokens[0])] = upper
    run.tokens, run.above = run.tokens[at:].copy(), upper
    upper.below[int(run.tokens[0])] = run
    return upper


def _join_with_only(run: _Run) -> None:
    """Put a run's tokens before those of the only one behind it, if nothing parts or ends between the two."""
    if run.above is None or len(run.below) != 1:
        return
    (following,) = run.below.values()
    if following.num_users == run.num_users:
        following.tokens = np.concatenate([run.tokens, following.tokens])
        following.above = run.above
        run.above.below[int(following.tokens[0])] = following


def _num_equal(tokens: Tokens, other: Tokens) -> int:
    """Tokens that both begin with; one comparison at the speed of memory, however long they are."""
    length = min(len(tokens), len(other))
    differs = tokens[:length] != other[:length]
    first = int(differs.argmax())
    return first if differs[first] else length
