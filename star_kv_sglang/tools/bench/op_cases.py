"""One measured case per op: its inputs on a shape, the bytes it has to move, and its target."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import torch

from star_kv_sglang.tools.bench.timing import copies_needed
from star_kv_sglang.triton_ops.pools import PoolTable

if TYPE_CHECKING:
    from collections.abc import Callable

    from star_kv_sglang.tools.bench.shapes import OpShape
    from star_kv_sglang.triton_ops.dispatch import Ops

PAGE_TABLE_ROWS = 64
PAGE_TABLE_POSITIONS = 32768


@dataclass(frozen=True)
class OpCase:
    """A measured op.

    calls(ops): independent calls on different copies of the data. num_bytes: least traffic of one call.
    unit: what one call does. Target: a share of the copy bandwidth or microseconds.
    tests: file under tests/ops whose result decides whether it may be reported.
    """

    name: str
    unit: str
    num_bytes: int
    calls: Callable[[Ops], list[Callable[[], object]]]
    tests: str
    target_bandwidth: float | None = None
    target_us: float | None = None


@dataclass
class Workload:
    """Random data of a shape on the GPU, shared by the cases."""

    shape: OpShape
    seed: int = 0
    device: torch.device = field(default_factory=lambda: torch.device("cuda"))

    def __post_init__(self) -> None:
        self.generator = torch.Generator(device=self.device).manual_seed(self.seed)
        shape, count = self.shape, self.shape.num_live
        self.num_slots = 2 * count + 1
        self.slots = torch.randperm(self.num_slots - 1, generator=self.generator, device=self.device)[:count].int() + 1
        self.kv_indptr = self.ints([0, count])
        newest = shape.frame_starts[-1]
        self.spans = self.ints([[newest, newest + shape.frame_tokens]])
        self.segments = self.ints([[start, start + shape.frame_tokens] for start in shape.frame_starts[:-1]])

    def ints(self, values: list[int] | list[list[int]]) -> torch.Tensor:
        """An int32 tensor on the device."""
        return torch.tensor(values, dtype=torch.int32, device=self.device)

    def rand(self, *size: int) -> torch.Tensor:
        """Uniform float32 numbers on the device."""
        return torch.rand(size, generator=self.generator, device=self.device)

    def randn(self, *size: int) -> torch.Tensor:
        """Normal bfloat16 numbers on the device."""
        return torch.randn(size, generator=self.generator, device=self.device, dtype=torch.bfloat16)


def build_cases(shape: OpShape) -> list[OpCase]:
    """All cases on one shape."""
    load = Workload(shape)
    builders = (
        _window_scores,
        _window_scores_known,
        _frame_norms,
        _frame_distances,
        _spatial_boost,
        _spatial_mi,
        _frame_stability,
        _fuse_scores,
        _select,
        _compact,
        _page_table,
    )
    return [build(load) for build in builders]


def _window_case(load: Workload, name: str, log_sums: torch.Tensor | None) -> OpCase:
    shape, count = load.shape, load.shape.num_live
    keys = [load.randn(load.num_slots, shape.groups, shape.head_dim) for _ in range(shape.layers)]
    query = load.randn(shape.window, shape.heads, shape.head_dim)
    out = torch.empty(shape.layers, shape.groups, count, device=load.device)
    query_indptr = load.ints([0, shape.window])

    def calls(ops: Ops) -> list[Callable[[], object]]:
        return [
            lambda layer=layer: ops.window_scores(  # type: ignore[misc]
                query,
                query_indptr,
                keys[layer],
                load.slots,
                load.kv_indptr,
                sm_scale=shape.head_dim**-0.5,
                pool_width=5,
                max_window=shape.window,
                max_num_live=count,
                out=out[layer],
                log_sums=log_sums,
            )
            for layer in range(shape.layers)
        ]

    num_bytes = count * shape.groups * (shape.head_dim * 2 + 4) + count * 4
    return OpCase(name, "layer", num_bytes, calls, "test_window_scores.py", target_bandwidth=0.6)


def _window_scores(load: Workload) -> OpCase:
    return _window_case(load, "window_scores", None)


def _window_scores_known(load: Workload) -> OpCase:
    """Denominators from the attention kernel; any value serves a measurement."""
    log_sums = torch.full((load.shape.window, load.shape.heads), 20.0, device=load.device)
    return _window_case(load, "window_scores+lse", log_sums)


def _norms_case(load: Workload, name: str, *, centred: bool) -> OpCase:
    shape = load.shape
    hidden = [
        load.randn(shape.frame_tokens, shape.hidden) for _ in range(copies_needed(shape.frame_tokens * shape.hidden))
    ]
    pool = torch.empty(load.num_slots, dtype=torch.float16, device=load.device)
    slots = load.slots[: shape.frame_tokens]
    ids = torch.zeros(shape.frame_tokens, dtype=torch.int32, device=load.device)

    indptr = torch.tensor([0, shape.frame_tokens], dtype=torch.int32, device=load.device)

    def run(ops: Ops, rows: torch.Tensor) -> object:
        if not centred:
            return ops.frame_norms(rows, slots, pool)
        return ops.frame_norms(rows, slots, pool, ops.frame_means(rows, indptr, max_rows=shape.frame_tokens), ids)

    def calls(ops: Ops) -> list[Callable[[], object]]:
        return [partial(run, ops, rows) for rows in hidden]

    num_bytes = shape.frame_tokens * (shape.hidden * 2 + 2 + 4)
    return OpCase(name, "layer", num_bytes, calls, "test_frame_norms.py", target_us=3.0)


def _frame_norms(load: Workload) -> OpCase:
    return _norms_case(load, "frame_norms", centred=False)


def _frame_distances(load: Workload) -> OpCase:
    """The screenshot's mean, and each token's distance from it."""
    return _norms_case(load, "frame_norms+centre", centred=True)


def _group_scores(load: Workload) -> list[torch.Tensor]:
    shape = load.shape
    size = shape.layers * shape.groups * shape.num_live * 4
    return [load.rand(shape.layers, shape.groups, shape.num_live) for _ in range(copies_needed(size))]


def _spatial_boost(load: Workload) -> OpCase:
    shape = load.shape
    scores, norms = _group_scores(load), load.rand(shape.layers, shape.num_live)

    def calls(ops: Ops) -> list[Callable[[], object]]:
        return [
            lambda s=s: ops.spatial_boost(  # type: ignore[misc]
                s, norms, load.spans, alpha=2.0, temperature=3.5, max_span=shape.frame_tokens
            )
            for s in scores
        ]

    num_bytes = shape.layers * shape.frame_tokens * 4 * (1 + 2 * shape.groups)
    return OpCase("spatial_boost", "turn", num_bytes, calls, "test_spatial_boost.py")


def _spatial_mi(load: Workload) -> OpCase:
    shape = load.shape
    scores = _group_scores(load)
    offsets = torch.zeros(shape.layers, shape.num_live, dtype=torch.int16, device=load.device)
    newest = shape.frame_starts[-1]
    offsets[:, newest : newest + shape.frame_tokens] = torch.arange(shape.frame_tokens, device=load.device).short()
    grids = load.ints([[shape.frame_rows, shape.frame_cols]])

    def calls(ops: Ops) -> list[Callable[[], object]]:
        return [
            lambda s=s: ops.spatial_mi(s, offsets, load.spans, grids, max_span=shape.frame_tokens)  # type: ignore[misc]
            for s in scores
        ]

    num_bytes = shape.layers * shape.frame_tokens * (4 * shape.groups + 2)
    return OpCase("spatial_mi", "turn", num_bytes, calls, "test_spatial_mi.py", target_us=150.0)


def _frame_stability(load: Workload) -> OpCase:
    shape = load.shape
    scores = _group_scores(load)
    previous = load.rand(shape.layers, shape.groups, shape.frame_tokens).half()
    running = torch.empty_like(previous)
    known = torch.ones(1, dtype=torch.bool, device=load.device)
    bounds = load.ints([0, shape.frame_tokens])

    def calls(ops: Ops) -> list[Callable[[], object]]:
        return [
            lambda s=s: ops.frame_stability(  # type: ignore[misc]
                s, load.spans, previous, known, bounds, rho=0.9, max_span=shape.frame_tokens, out_pattern=running
            )
            for s in scores
        ]

    num_bytes = shape.layers * shape.groups * shape.frame_tokens * (4 + 2 + 2)
    return OpCase("frame_stability", "turn", num_bytes, calls, "test_frame_stability.py")


def _fuse_scores(load: Workload) -> OpCase:
    shape, count = load.shape, load.shape.num_live
    scores = _group_scores(load)
    per_group = load.rand(shape.layers, 1, shape.groups)
    ages = torch.zeros(count, dtype=torch.int32, device=load.device)
    previous = torch.full((shape.layers, 1), float("nan"), device=load.device)
    windows = load.ints([shape.window])

    def calls(ops: Ops) -> list[Callable[[], object]]:
        return [
            lambda s=s: ops.fuse_scores(  # type: ignore[misc]
                s,
                load.kv_indptr,
                windows,
                ages,
                per_group,
                per_group,
                previous,
                discount_floor=0.0,
                temperature_range=(0.75, 1.25),
                temperature_smoothing=0.0,
                max_num_live=count,
            )
            for s in scores
        ]

    num_bytes = count * 4 * (shape.layers * (shape.groups + 1) + 2)
    return OpCase("fuse_scores", "turn", num_bytes, calls, "test_fuse_scores.py", target_bandwidth=0.6)


def _kept_tokens(shape: OpShape) -> int:
    return int(shape.keep * shape.frame_tokens) * (shape.frames - 1)


def _select(load: Workload) -> OpCase:
    shape, count = load.shape, load.shape.num_live
    scores = [load.rand(shape.layers, count) for _ in range(copies_needed(shape.layers * count * 8))]
    out = torch.empty(shape.layers, count, dtype=torch.int32, device=load.device)
    bounds, budgets = load.ints([0, shape.frames - 1]), load.ints([_kept_tokens(shape)])
    floors = load.ints([16] * (shape.frames - 1))

    def both(ops: Ops, calibrated: torch.Tensor) -> None:
        quotas = ops.segment_quotas(
            calibrated[0], load.segments, bounds, budgets, floors, page_size=1, max_segment=shape.frame_tokens
        )
        ops.select_topn(calibrated, load.segments, quotas, max_segment=shape.frame_tokens, out=out)

    def calls(ops: Ops) -> list[Callable[[], object]]:
        return [lambda s=s: both(ops, s) for s in scores]  # type: ignore[misc]

    num_bytes = 4 * (shape.frames - 1) * shape.frame_tokens * (2 * shape.layers + 1)
    return OpCase("select", "turn", num_bytes, calls, "test_select.py", target_us=400.0)


def _compact(load: Workload) -> OpCase:
    shape, count = load.shape, load.shape.num_live
    pools = [[load.randn(load.num_slots, shape.groups, shape.head_dim) for _ in range(shape.layers)] for _ in range(2)]
    sides = [
        torch.zeros(shape.layers, load.num_slots, dtype=d, device=load.device) for d in (torch.float16, torch.int16)
    ]
    table = PoolTable.build([*pools, *sides])
    quota = int(shape.keep * shape.frame_tokens)
    quotas = load.ints([quota] * (shape.frames - 1))
    kept = torch.full((shape.layers, count), -1, dtype=torch.int32, device=load.device)
    for start in shape.frame_starts[:-1]:
        order = load.rand(shape.layers, shape.frame_tokens).argsort(dim=1)[:, :quota].sort(dim=1).values
        kept[:, start : start + quota] = order.int() + start

    def calls(ops: Ops) -> list[Callable[[], object]]:
        return [lambda: ops.compact(table, load.slots, load.segments, quotas, kept)]

    row_bytes = 2 * shape.groups * shape.head_dim * 2 + 4
    num_bytes = 2 * _kept_tokens(shape) * shape.layers * row_bytes
    return OpCase("compact", "turn", num_bytes, calls, "test_compact.py", target_bandwidth=0.75)


def _page_table(load: Workload) -> OpCase:
    table = torch.randint(
        1, 2**20, (PAGE_TABLE_ROWS, PAGE_TABLE_POSITIONS), generator=load.generator, device=load.device
    ).int()
    table[torch.rand(table.shape, generator=load.generator, device=load.device) < 0.5] = 0
    live = int((table != 0).sum())
    tables = [table.clone() for _ in range(copies_needed(table.numel() * 4))]
    row_ids = torch.arange(PAGE_TABLE_ROWS, dtype=torch.int32, device=load.device)
    seq_lens = torch.full_like(row_ids, PAGE_TABLE_POSITIONS)
    kv_indptr = load.ints([0] * (PAGE_TABLE_ROWS + 1))
    kv_indices = torch.empty(table.numel(), dtype=torch.int32, device=load.device)

    def calls(ops: Ops) -> list[Callable[[], object]]:
        return [
            lambda t=t: ops.page_table(  # type: ignore[misc]
                t, row_ids, seq_lens, max_seq_len=PAGE_TABLE_POSITIONS, kv_indptr=kv_indptr, kv_indices=kv_indices
            )
            for t in tables
        ]

    unit = f"{PAGE_TABLE_ROWS} rows x {PAGE_TABLE_POSITIONS}"
    return OpCase("page_table", unit, 4 * (table.numel() + live), calls, "test_page_table.py", target_us=10.0)
