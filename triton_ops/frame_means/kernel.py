# mypy: allow-untyped-defs, allow-untyped-decorators
"""Column means of runs of rows, in two passes of fixed order: the same sums in every run."""

import triton
import triton.language as tl


@triton.jit
def partial_sums_kernel(
    hidden,  # [n, C]
    indptr,  # [F+1] int32
    excess,  # [n] float32, read with HAS_EXCESS
    partial,  # [F, B, C] float32
    hidden_stride,
    num_blocks,
    most_excess,
    HAS_EXCESS: tl.constexpr,
    NUM_CHANNELS: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """One block of rows and channels of one frame per program."""
    frame = tl.program_id(0)
    block = tl.program_id(1)
    channel = tl.program_id(2) * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = channel < NUM_CHANNELS
    end = tl.load(indptr + frame + 1)
    rows = tl.load(indptr + frame) + block * BLOCK_R + tl.arange(0, BLOCK_R)
    counted = rows < end
    if HAS_EXCESS:
        counted = counted & (tl.load(excess + rows, mask=counted, other=0.0) <= most_excess)
    values = tl.load(
        hidden + rows[:, None].to(tl.int64) * hidden_stride + channel[None, :],
        mask=counted[:, None] & inside[None, :],
        other=0.0,
    ).to(tl.float32)
    sums = tl.sum(values, axis=0)
    tl.store(partial + (frame * num_blocks + block).to(tl.int64) * NUM_CHANNELS + channel, sums, mask=inside)


@triton.jit
def combine_sums_kernel(
    partial,  # [F, B, C] float32
    indptr,  # [F+1] int32
    excess,  # [n] float32, read with HAS_EXCESS
    means,  # [F, C] float32
    num_blocks,
    most_excess,
    HAS_EXCESS: tl.constexpr,
    NUM_CHANNELS: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """One block of channels of one frame per program."""
    frame = tl.program_id(0)
    channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = channel < NUM_CHANNELS
    first = tl.load(indptr + frame)
    end = tl.load(indptr + frame + 1)
    used = tl.cdiv(end - first, BLOCK_R)
    num_rows = end - first
    if HAS_EXCESS:
        num_rows = 0
        for start in range(first, end, BLOCK_N):
            row = start + tl.arange(0, BLOCK_N)
            large = tl.load(excess + row, mask=row < end, other=0.0) > most_excess
            num_rows += tl.sum(((row < end) & (large == 0)).to(tl.int32), axis=0)
    base = partial + frame.to(tl.int64) * num_blocks * NUM_CHANNELS
    total = tl.zeros([BLOCK_C], tl.float32)
    for start in range(0, used, BLOCK_B):
        block = start + tl.arange(0, BLOCK_B)
        values = tl.load(
            base + block[:, None] * NUM_CHANNELS + channel[None, :],
            mask=(block < used)[:, None] & inside[None, :],
            other=0.0,
        )
        total += tl.sum(values, axis=0)
    tl.store(means + frame * NUM_CHANNELS + channel, total / tl.maximum(num_rows, 1), mask=inside)
