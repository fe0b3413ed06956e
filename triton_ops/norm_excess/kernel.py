# mypy: allow-untyped-defs, allow-untyped-decorators
"""Ratios of a frame's norms to their exact median."""

import triton
import triton.language as tl

from star_kv_sglang.triton_ops.lower_median import lower_median


@triton.jit
def norm_excess_kernel(
    norms,  # [n] float32
    indptr,  # [F+1] int32
    excess,  # [n] float32
    BLOCK_R: tl.constexpr,
    ONE_TILE: tl.constexpr,
):
    """One frame per program."""
    frame = tl.program_id(0)
    start = tl.load(indptr + frame)
    end = tl.load(indptr + frame + 1)
    usual = lower_median(norms, start, end, BLOCK_R, ONE_TILE)
    for tile in range(start, end, BLOCK_R):
        row = tile + tl.arange(0, BLOCK_R)
        norm = tl.load(norms + row, mask=row < end, other=0.0)
        ratio = tl.where(usual > 0, norm / tl.where(usual > 0, usual, 1.0), 0.0)
        known = tl.load(excess + row, mask=row < end, other=0.0)
        tl.store(excess + row, tl.maximum(known, ratio), mask=row < end)
