# mypy: allow-untyped-defs, allow-untyped-decorators
"""The largest first, then the largest behind it: there are at most a few."""

import triton
import triton.language as tl


@triton.jit
def mark_sinks_kernel(
    excess,  # [n] float32
    indptr,  # [F+1] int32
    slots,  # [n] integer
    norms,  # [L, num_slots] float
    ratio,
    num_slots,
    num_layers,
    MOST: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_L: tl.constexpr,
):
    """One frame per program."""
    frame = tl.program_id(0)
    start = tl.load(indptr + frame)
    end = tl.load(indptr + frame + 1)
    layer = tl.arange(0, BLOCK_L).to(tl.int64)
    last, last_row = tl.full([1], float("inf"), tl.float32), tl.full([1], -1, tl.int32)
    for _ in tl.static_range(MOST):
        largest, its_row = tl.full([1], -1.0, tl.float32), tl.zeros([1], tl.int32)
        for tile in range(start, end, BLOCK_R):
            row = tile + tl.arange(0, BLOCK_R)
            value = tl.load(excess + row, mask=row < end, other=-1.0)
            # Behind the one before: less, or as much in a later row.
            behind = (value < last) | ((value == last) & (row > last_row))
            value = tl.where(behind & (row < end), value, -1.0)
            best = tl.max(value, axis=0)
            first = tl.min(tl.where(value == best, row, 0x7FFFFFFF), axis=0)
            its_row = tl.where(best > largest, first, its_row)
            largest = tl.maximum(largest, best)
        found = largest > ratio
        slot = tl.load(slots + its_row, mask=found, other=0).to(tl.int64)
        infinite = tl.full([BLOCK_L], float("inf"), tl.float32).to(norms.dtype.element_ty)
        tl.store(norms + layer * num_slots + slot, infinite, mask=found & (layer < num_layers))
        last, last_row = largest, its_row
