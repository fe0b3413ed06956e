"""What a step of the tree-wide budget costs: many branches whose screenshots compete, one new screenshot too many."""

from __future__ import annotations

import statistics
import time
from array import array
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace

import torch
from sglang.srt.mem_cache.allocator.token import TokenToKVPoolAllocator
from sglang.srt.mem_cache.base_prefix_cache import InsertParams
from sglang.srt.mem_cache.cache_init_params import CacheInitParams
from sglang.srt.mem_cache.memory_pool import ReqToTokenPool
from sglang.srt.mem_cache.radix_cache import RadixKey

from star_kv_sglang.cache.ledger import SegmentLedger
from star_kv_sglang.cache.radix_cache import StarRadixCache
from star_kv_sglang.cache.segments import Frame
from star_kv_sglang.cache.side_pools import SidePools
from star_kv_sglang.engine.compaction import KVPools
from star_kv_sglang.engine.tree_budget import TreeBudget, TreeRules
from star_kv_sglang.tools.bench.append import append_rows
from star_kv_sglang.tools.bench.serve.machine import describe
from star_kv_sglang.triton_ops.dispatch import default_ops

NUM_TEXT = 12
"""Text tokens before each screenshot, which differ between branches."""


@dataclass(frozen=True)
class StepShape:
    """What is in the tree.

    Attributes:
        num_branches: Branches that share nothing.
        num_screens: Screenshots in each.
        rows, cols: Of a screenshot's grid of live tokens.
        num_layers, num_groups, head_dim: Of the model.
        excess: Slots that have to come free in a step.
    """

    num_branches: int = 1000
    num_screens: int = 5
    rows: int = 9
    cols: int = 12
    num_layers: int = 28
    num_groups: int = 4
    head_dim: int = 128
    excess: int = 2691

    @property
    def branch_len(self) -> int:
        """Tokens of a branch."""
        return self.num_screens * (NUM_TEXT + self.rows * self.cols)


@dataclass(frozen=True)
class StepTimes:
    """Milliseconds of whole steps, the device's work included, and what they did.

    Attributes:
        median_ms, worst_ms: Over all steps but the first, which compiles.
        num_steps: Steps that were measured.
        num_segments: Segments that a step cut, mean.
        num_freed: Slots that a step freed, mean.
    """

    median_ms: float
    worst_ms: float
    num_steps: int
    num_segments: float
    num_freed: float


def measure(shape: StepShape, device: torch.device, *, num_steps: int = 12) -> StepTimes:
    """Fill a tree and take steps, each of which has to free ``shape.excess`` slots.

    Args:
        shape: What is in the tree.
        device: Of the pools.
        num_steps: At least 2; the first is not counted.
    """
    tree, budget = _fill(shape, device)
    times, segments, freed = [], [], []
    for _ in range(num_steps):
        _wait(device)
        start = time.perf_counter()
        cut = budget.reduce_private(tree.sharing.private_size - shape.excess, running=(), waiting=())
        _wait(device)
        times.append(1e3 * (time.perf_counter() - start))
        segments.append(cut.num_segments)
        freed.append(cut.num_freed)
    return StepTimes(
        statistics.median(times[1:]),
        max(times[1:]),
        num_steps - 1,
        statistics.mean(segments[1:]),
        statistics.mean(freed[1:]),
    )


def append_csv(path: Path, shape: StepShape, times: StepTimes) -> None:
    """Append one row, with the machine's name and versions."""
    append_rows(path, [{**asdict(describe("tree budget")), **asdict(shape), **asdict(times)}])


def _fill(shape: StepShape, device: torch.device) -> tuple[StarRadixCache, TreeBudget]:
    num_slots = shape.num_branches * shape.branch_len
    allocator = TokenToKVPoolAllocator(num_slots, torch.bfloat16, str(device), SimpleNamespace(), False)
    ledger = SegmentLedger()
    tree = StarRadixCache(
        CacheInitParams(
            disable=False,
            req_to_token_pool=ReqToTokenPool(1, 8, str(device), enable_memory_saver=False),
            token_to_kv_pool_allocator=allocator,
            page_size=1,
        ),
        ledger=ledger,
    )
    side = SidePools.allocate(
        shape.num_layers, num_slots + 1, norm_dtype=torch.float16, device=device, with_scores=True
    )
    ledger.slot_ids = side.segment_ids
    size = (shape.num_layers, num_slots + 1, shape.num_groups, shape.head_dim)
    keys, values = (torch.zeros(size, dtype=torch.bfloat16, device=device) for _ in range(2))
    if side.scores is not None:
        side.scores.copy_(torch.rand(side.scores.shape, device=device))
    grid = shape.rows * shape.cols
    for number in range(shape.num_branches):
        tokens, frames = array("q"), []
        for screen in range(shape.num_screens):
            tokens.extend([number + 1] * NUM_TEXT)
            frames.append(Frame(len(tokens), shape.rows, shape.cols, screen))
            tokens.extend([-1 - screen] * grid)
        slots = allocator.alloc(len(tokens))
        node = tree.insert(InsertParams(key=RadixKey(tokens), value=slots)).last_device_node
        tree.label_frames(tree.path(node), frames)
        tree.register_path(tree.path(node))
    budget = TreeBudget(tree, KVPools(list(keys), list(values), side), default_ops(device), TreeRules(0.02, 0.0, 0.0))
    return tree, budget


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
