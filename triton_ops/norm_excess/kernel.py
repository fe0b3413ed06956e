# mypy: allow-untyped-defs, allow-untyped-decorators
"""The exact lower median of a frame's norms, bit by bit from the highest: floats that are not below 0 are in the order
of their bits.
"""

import triton
import triton.language as tl


@triton.jit
def norm_excess_kernel(
    norms,  # [n] float32
    indptr,  # [F+1] int32
    excess,  # [n] float32
    BLOCK_R: tl.constexpr,
    ONE_TILE: tl.constexpr,
):
    """One frame per program; where a tile holds the largest, each norm is read once."""
    frame = tl.program_id(0)
    start = tl.load(indptr + frame)
    end = tl.load(indptr + frame + 1)
    rank = (end - start - 1) // 2
    median = tl.zeros([1], tl.int32)
    first = start + tl.arange(0, BLOCK_R)
    first_bits = tl.load(norms + first, mask=first < end, other=0.0).to(tl.int32, bitcast=True)
    for step in range(31):
        candidate = median + (tl.full([1], 1, tl.int32) << (30 - step))
        below = tl.zeros([1], tl.int32) + tl.sum(((first < end) & (first_bits < candidate)).to(tl.int32), axis=0)
        if not ONE_TILE:
            for tile in range(start + BLOCK_R, end, BLOCK_R):
                row = tile + tl.arange(0, BLOCK_R)
                bits = tl.load(norms + row, mask=row < end, other=0.0).to(tl.int32, bitcast=True)
                below += tl.sum(((row < end) & (bits < candidate)).to(tl.int32), axis=0)
        median = tl.where(below <= rank, candidate, median)
    usual = median.to(tl.float32, bitcast=True)
    for tile in range(start, end, BLOCK_R):
        row = tile + tl.arange(0, BLOCK_R)
        norm = tl.load(norms + row, mask=row < end, other=0.0)
        ratio = tl.where(usual > 0, norm / tl.where(usual > 0, usual, 1.0), 0.0)
        known = tl.load(excess + row, mask=row < end, other=0.0)
        tl.store(excess + row, tl.maximum(known, ratio), mask=row < end)
