"""What it costs to find the branch of a prompt that leaves screenshots out, and the ids that it has there."""

from __future__ import annotations

import gc
import random
import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from sglang.srt.mem_cache.allocator.token import TokenToKVPoolAllocator
from sglang.srt.mem_cache.base_prefix_cache import InsertParams
from sglang.srt.mem_cache.cache_init_params import CacheInitParams
from sglang.srt.mem_cache.radix_cache import RadixKey

from star_kv_sglang.cache.alignment import Alignment
from star_kv_sglang.cache.lookup import ids_of_path
from star_kv_sglang.cache.message_index import MessageIndex
from star_kv_sglang.cache.radix_cache import StarRadixCache
from star_kv_sglang.cache.segments import Frame
from star_kv_sglang.tools.bench.query_times import QueryTime

START, VISION_START, VISION_END = 1, 2, 3
FIRST_WORD, VOCABULARY = 10, 150_000
NAMESPACE = (None, None)


@dataclass(frozen=True)
class CacheShape:
    """What is cached, and what is asked.

    Attributes:
        num_branches: Branches in the tree.
        num_turns: Turns of each.
        kept: Newest screenshots that a prompt shows.
        rows: Of a screenshot's tokens.
        cols: Likewise.
        num_words: Tokens of an answer.
        same_words: All branches give the same answers, so that only their screenshots tell them apart.
    """

    num_branches: int = 1_000
    num_turns: int = 30
    kept: int = 5
    rows: int = 38
    cols: int = 69
    num_words: int = 60
    same_words: bool = False


class Forest:
    """Branches that all begin with one task and go on with screenshots of their own.

    Args:
        shape: Of them.
    """

    def __init__(self, shape: CacheShape) -> None:
        self._shape = shape
        self._rng = random.Random(1)
        self._task = array("q", [START, *self._words(200)])
        self._answers = [array("q", [START, *self._words(shape.num_words)]) for _ in range(shape.num_turns)]
        size = shape.num_branches * shape.num_turns * (shape.rows * shape.cols + shape.num_words + 20)
        self._allocator = TokenToKVPoolAllocator(64, torch.bfloat16, "cpu", SimpleNamespace(), False)
        self._allocator.size = size
        params: Any = CacheInitParams(
            disable=False,
            req_to_token_pool=SimpleNamespace(),
            token_to_kv_pool_allocator=self._allocator,
            page_size=1,
        )
        self.tree = StarRadixCache(params)
        self.index = MessageIndex(START)
        self.tree.messages = self.index

    def _words(self, number: int) -> list[int]:
        return [self._rng.randrange(FIRST_WORD, VOCABULARY) for _ in range(number)]

    def branch(self, number: int) -> list[array[int] | int]:
        """Messages of a branch: ids of a text, or the hash of a screenshot."""
        shape = self._shape
        messages: list[array[int] | int] = [self._task]
        for turn in range(shape.num_turns):
            own = array("q", [START, *self._words(shape.num_words)])
            messages += [number * shape.num_turns + turn + 1, self._answers[turn] if shape.same_words else own]
        return messages

    def prompt(self, messages: Sequence[array[int] | int]) -> tuple[array[int], list[Frame]]:
        """Ids and screenshots of some messages, and what opens an answer."""
        ids, frames = array("q"), []
        for message in messages:
            if isinstance(message, int):
                ids += array("q", [START, FIRST_WORD, VISION_START])
                frames.append(Frame(len(ids), self._shape.rows, self._shape.cols, message))
                ids += array("q", [VOCABULARY + message]) * (self._shape.rows * self._shape.cols)
                ids += array("q", [VISION_END])
            else:
                ids += message
        return ids, frames

    def store(self, messages: Sequence[array[int] | int]) -> None:
        """Store a branch turn by turn, as its requests do."""
        for end in range(3, len(messages) + 1, 2):
            ids, frames = self.prompt(messages[:end])
            slots = torch.zeros(1, dtype=torch.int64).expand(len(ids))
            result = self.tree.insert(InsertParams(key=RadixKey(ids), value=slots))
            path = self.tree.path(result.last_device_node)
            self.tree.label_frames(path, frames)
            self.index.note(self.tree, path, ids, frames, NAMESPACE)


def measure(shape: CacheShape, *, num_queries: int = 200) -> Iterator[QueryTime]:
    """Fill a tree, then ask for the next turns of its branches, and for prompts that lie on none.

    Args:
        shape: Of the tree and the prompts.
        num_queries: Of each kind.

    Raises:
        RuntimeError: A branch is not found, or one is that should not be.
    """
    forest = Forest(shape)
    branches = [forest.branch(number) for number in range(shape.num_branches)]
    for branch in branches:
        forest.store(branch)
    rng = random.Random(2)
    gc.collect()
    gc.freeze()  # a tree of this size would make the collector the slowest part of a query

    def next_turn(kept: int) -> Callable[[], tuple[array[int], list[Frame], int]]:
        def make() -> tuple[array[int], list[Frame], int]:
            branch = rng.choice(branches)
            shown = [m for m in branch if isinstance(m, int)][len(branch) // 2 + 1 - kept :]
            left = [m for m in branch if not isinstance(m, int) or m in shown]
            ids, frames = forest.prompt([*left, -1, array("q", [START])])
            return ids, frames, shape.num_turns + 1 - kept

        return make

    def another() -> tuple[array[int], list[Frame], int]:
        ids, frames = forest.prompt([array("q", [START, 11]), -2, *branches[0][2:], -1, array("q", [START])])
        return ids, frames, 0

    def whole() -> tuple[array[int], list[Frame], int]:
        ids, frames = forest.prompt([*rng.choice(branches), -1, array("q", [START])])
        return ids, frames, 0

    for query, make in {
        f"the newest {shape.kept} screenshots": next_turn(shape.kept),
        "the newest one": next_turn(1),
        "all screenshots": whole,
        "another task": another,
    }.items():
        yield QueryTime.of(query, [_timed(forest, *make()) for _ in range(num_queries)])
    gc.unfreeze()


def _timed(forest: Forest, ids: array[int], frames: list[Frame], expected: int) -> float:
    """Seconds of this thread alone, so that whatever else the machine does is left out."""
    start = time.thread_time()
    fit = Alignment(forest.tree, forest.index, ids, frames).best(NAMESPACE)
    if fit is not None:
        ids_of_path(forest.tree, fit.last, fit.held)
    seconds = time.thread_time() - start
    found = 0 if fit is None else len(fit.left_out)
    if found != expected:
        raise RuntimeError(f"{found} screenshots were found to be left out, not {expected}: its time means nothing")
    return seconds
