"""What the tree's operations cost beside SGLang's own tree: the same operations on both, in one process, in turns."""

from __future__ import annotations

import gc
import random
import statistics
import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from sglang.srt.mem_cache.allocator.token import TokenToKVPoolAllocator
from sglang.srt.mem_cache.base_prefix_cache import EvictParams, InsertParams, MatchPrefixParams
from sglang.srt.mem_cache.cache_init_params import CacheInitParams
from sglang.srt.mem_cache.radix_cache import RadixCache, RadixKey

from star_kv_sglang.cache.ledger import SegmentLedger
from star_kv_sglang.cache.radix_cache import StarRadixCache
from star_kv_sglang.cache.segments import Frame
from star_kv_sglang.tools.bench.append import append_rows
from star_kv_sglang.tools.bench.serve.machine import describe

NUM_TEXT, ROWS, COLS = 8, 4, 6
NODE_TOKENS = NUM_TEXT + ROWS * COLS
TURNS = 10
KEPT = 5
"""Tokens that stay of a pruned screenshot."""


@dataclass(frozen=True)
class Row:
    """One operation.

    Attributes:
        operation: Its name.
        num_nodes: Nodes of both trees.
        star_us: Microseconds of one on our tree, median over the rounds.
        stock_us: On SGLang's; NaN where it has no such operation.
        ratio: The first by the second, median over the rounds.
    """

    operation: str
    num_nodes: int
    star_us: float
    stock_us: float
    ratio: float


class Forest:
    """Trajectories of ten turns in a tree, one node for each turn; one in ten forks from another one half-way.

    Args:
        tree: Empty.
        num_nodes: Nodes to make.
    """

    def __init__(self, tree: RadixCache, num_nodes: int) -> None:
        self.tree = tree
        self.sequences: list[array[int]] = []
        rng = random.Random(1)
        made = 0
        # Each free of a pool of this size copies megabytes; what is compared here is the trees.
        tree.token_to_kv_pool_allocator.free_group_begin()
        while made < num_nodes:
            tokens = array("q")
            if self.sequences and rng.random() < 0.1:
                tokens = rng.choice(self.sequences)[: TURNS // 2 * NODE_TOKENS]
            number = len(self.sequences) + 1
            while len(tokens) < TURNS * NODE_TOKENS:
                tokens = tokens + turn(number, len(tokens) // NODE_TOKENS)
                self.insert(tokens)
                made += 1
            self.sequences.append(tokens)
        tree.token_to_kv_pool_allocator.free_group_end()

    def insert(self, tokens: array[int]) -> Any:
        """Store a sequence as a request does: its slots, its screenshots, its scores."""
        slots = self.tree.token_to_kv_pool_allocator.alloc(NODE_TOKENS).repeat(len(tokens) // NODE_TOKENS)
        result = self.tree.insert(InsertParams(key=RadixKey(tokens), value=slots))
        if isinstance(self.tree, StarRadixCache):
            self.tree.label_frames(self.tree.path(result.last_device_node), frames_of(tokens))
            self.tree.register_path(self.tree.path(result.last_device_node))
        return result.last_device_node

    def match(self, tokens: array[int]) -> Any:
        """The last node of a sequence."""
        return self.tree.match_prefix(MatchPrefixParams(key=RadixKey(tokens))).last_device_node


def turn(branch: int, number: int) -> array[int]:
    """Words that tell branches apart, then a screenshot."""
    return array("q", [branch] * NUM_TEXT + [-1 - number] * (ROWS * COLS))


def frames_of(tokens: array[int]) -> list[Frame]:
    """The screenshots of a sequence."""
    return [Frame(start, ROWS, COLS, start) for start in range(NUM_TEXT, len(tokens), NODE_TOKENS)]


def measure(num_nodes: int = 100_000, num_operations: int = 1000, num_rounds: int = 7) -> Iterator[Row]:
    """Fill both trees, then take the operations in turns.

    Args:
        num_nodes: Of each tree.
        num_operations: In a round.
        num_rounds: Their medians are told.
    """
    num_slots = (num_nodes + 2 * num_operations * num_rounds) * NODE_TOKENS
    star, stock = (Forest(make(num_slots), num_nodes) for make in (_star_tree, _stock_tree))
    rng = random.Random(2)
    gc.collect()
    gc.freeze()  # two trees of this size would make the collector the slowest operation
    for name, operation in OPERATIONS.items():
        times: list[tuple[float, float]] = []
        for number in range(num_rounds + 1):
            chosen = rng.sample(star.sequences, num_operations)
            order = (star, stock) if number % 2 else (stock, star)
            measured = {forest: operation(forest, chosen, number) for forest in order}
            times.append((measured[star], measured[stock]))
        per = [(1e6 * a / num_operations, 1e6 * b / num_operations) for a, b in times[1:]]
        star_us, stock_us = (statistics.median(one) for one in zip(*per, strict=True))
        yield Row(name, num_nodes, star_us, stock_us, statistics.median(a / b for a, b in per))
    yield _prune(star, rng.sample(star.sequences, num_operations), num_nodes)
    gc.unfreeze()


def _match(forest: Forest, sequences: Sequence[array[int]], number: int) -> float:
    del number
    return _timed(lambda: [forest.match(tokens) for tokens in sequences])


def _lock(forest: Forest, sequences: Sequence[array[int]], number: int) -> float:
    del number
    nodes, tree = [forest.match(tokens) for tokens in sequences], forest.tree

    def run() -> None:
        for node in nodes:
            tree.inc_lock_ref(node)
        for node in nodes:
            tree.dec_lock_ref(node)

    return _timed(run)


def _insert(forest: Forest, sequences: Sequence[array[int]], number: int) -> float:
    """One more turn of each, its screenshots told as a request does."""
    longer = [tokens + turn(-1 - number, TURNS) for tokens in sequences]
    allocator, tree = forest.tree.token_to_kv_pool_allocator, forest.tree
    slots = [allocator.alloc(NODE_TOKENS).repeat(TURNS + 1) for _ in longer]
    frames = [frames_of(tokens) for tokens in longer]

    def run() -> None:
        for tokens, values, shown in zip(longer, slots, frames, strict=True):
            result = tree.insert(InsertParams(key=RadixKey(tokens), value=values))
            if isinstance(tree, StarRadixCache):
                tree.label_frames(tree.path(result.last_device_node), shown)

    return _timed(run)


def _evict(forest: Forest, sequences: Sequence[array[int]], number: int) -> float:
    """As many leaves as there are sequences, a tenth of them at a time."""
    del number
    share, allocator = len(sequences) // 10 * NODE_TOKENS, forest.tree.token_to_kv_pool_allocator
    allocator.free_group_begin()
    seconds = _timed(lambda: [forest.tree.evict(EvictParams(num_tokens=share)) for _ in range(10)])
    allocator.free_group_end()
    return seconds


OPERATIONS: dict[str, Callable[[Forest, Sequence[array[int]], int], float]] = {
    "match": _match,
    "lock and unlock": _lock,
    "insert": _insert,
    "evict": _evict,
}


def _prune(forest: Forest, sequences: Sequence[array[int]], num_nodes: int) -> Row:
    """The bookkeeping of a prune: the newest screenshot of each sequence; nothing of SGLang's is like it."""
    tree = forest.tree
    if not isinstance(tree, StarRadixCache):
        raise TypeError("only our tree prunes")
    # Sequences that fork from each other end in the same node once their own leaves are evicted.
    nodes = dict.fromkeys(forest.match(tokens) for tokens in sequences)
    targets = [(node, one, KEPT) for node in nodes for one in tree.extra(node).segments[-1:] if one.num_live > KEPT]
    tree.token_to_kv_pool_allocator.free_group_begin()
    seconds = _timed(lambda: [tree.punch_all([target]) for target in targets])
    tree.token_to_kv_pool_allocator.free_group_end()
    return Row("prune, bookkeeping", num_nodes, 1e6 * seconds / max(1, len(targets)), float("nan"), float("nan"))


def append_csv(path: Path, rows: Sequence[Row]) -> None:
    """Append the rows, with the machine's name and versions."""
    machine = asdict(describe("tree"))
    append_rows(path, [{**machine, **asdict(row)} for row in rows])


def _timed(run: Callable[[], Any]) -> float:
    """Seconds of this thread alone, so that whatever else the machine does is left out."""
    start = time.thread_time()
    run()
    return time.thread_time() - start


def _parameters(num_slots: int) -> CacheInitParams:
    allocator = TokenToKVPoolAllocator(num_slots, torch.bfloat16, "cpu", SimpleNamespace(), False)
    return CacheInitParams(disable=False, req_to_token_pool=None, token_to_kv_pool_allocator=allocator, page_size=1)


def _stock_tree(num_slots: int) -> RadixCache:
    return RadixCache(_parameters(num_slots))


def _star_tree(num_slots: int) -> StarRadixCache:
    return StarRadixCache(_parameters(num_slots), ledger=SegmentLedger())
