# mypy: allow-untyped-defs, allow-untyped-decorators
"""The exact lower median of numbers that are not below 0, bit by bit from the highest: they are in the order of their
bits.
"""

import triton
import triton.language as tl


@triton.jit
def lower_median(values, start, end, BLOCK: tl.constexpr, ONE_TILE: tl.constexpr):
    """float32 [1], of ``values[start:end]``; where a tile holds all of them, each is read once."""
    rank = (end - start - 1) // 2
    median = tl.zeros([1], tl.int32)
    first = start + tl.arange(0, BLOCK)
    first_bits = tl.load(values + first, mask=first < end, other=0.0).to(tl.int32, bitcast=True)
    for step in range(31):
        candidate = median + (tl.full([1], 1, tl.int32) << (30 - step))
        below = tl.zeros([1], tl.int32) + tl.sum(((first < end) & (first_bits < candidate)).to(tl.int32), axis=0)
        if not ONE_TILE:
            for tile in range(start + BLOCK, end, BLOCK):
                row = tile + tl.arange(0, BLOCK)
                bits = tl.load(values + row, mask=row < end, other=0.0).to(tl.int32, bitcast=True)
                below += tl.sum(((row < end) & (bits < candidate)).to(tl.int32), axis=0)
        median = tl.where(below <= rank, candidate, median)
    return median.to(tl.float32, bitcast=True)
