# mypy: allow-untyped-defs, allow-untyped-decorators
"""Counts of the keys above several thresholds, one segment per program."""

import triton
import triton.language as tl


@triton.jit
def count_above_kernel(
    keys,  # [U, n] int16
    indptr,  # [S+1] int32
    thresholds,  # [T] int32
    counts,  # [T, S] int32
    keys_stride,
    num_units,
    num_segments,
    num_thresholds,
    BLOCK_K: tl.constexpr,
    BLOCK_T: tl.constexpr,
):
    """The keys of all units of one segment, as one row."""
    segment = tl.program_id(0)
    start = tl.load(indptr + segment)
    length = tl.load(indptr + segment + 1) - start
    which = tl.arange(0, BLOCK_T)
    bound = tl.load(thresholds + which, mask=which < num_thresholds, other=1 << 30)
    above = tl.zeros([BLOCK_K, BLOCK_T], tl.int32)
    total = length * num_units
    for first in range(0, total, BLOCK_K):
        place = first + tl.arange(0, BLOCK_K)
        unit = place // tl.maximum(length, 1)
        column = start + place - unit * length
        # What lies beyond the segment is above no threshold.
        key = tl.load(keys + unit.to(tl.int64) * keys_stride + column, mask=place < total, other=-32768).to(tl.int32)
        inside = (place < total)[:, None]
        above += ((key[:, None] > bound[None, :]) & inside).to(tl.int32)
    tl.store(counts + which * num_segments + segment, tl.sum(above, axis=0), mask=which < num_thresholds)
