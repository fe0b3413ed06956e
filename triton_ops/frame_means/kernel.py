# mypy: allow-untyped-defs, allow-untyped-decorators
"""Column means of runs of rows, in two passes of fixed order: the same sums in every run."""

import triton
import triton.language as tl


@triton.jit
def partial_sums_kernel(
    hidden,  # [n, C]
    indptr,  # [F+1] int32
    partial,  # [F, B, C] float32
    hidden_stride,
    num_blocks,
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
    values = tl.load(
        hidden + rows[:, None].to(tl.int64) * hidden_stride + channel[None, :],
        mask=(rows < end)[:, None] & inside[None, :],
        other=0.0,
    ).to(tl.float32)
    sums = tl.sum(values, axis=0)
    tl.store(partial + (frame * num_blocks + block).to(tl.int64) * NUM_CHANNELS + channel, sums, mask=inside)


@triton.jit
def combine_sums_kernel(
    partial,  # [F, B, C] float32
    indptr,  # [F+1] int32
    means,  # [F, C] float32
    num_blocks,
    NUM_CHANNELS: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """One block of channels of one frame per program."""
    frame = tl.program_id(0)
    channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = channel < NUM_CHANNELS
    num_rows = tl.load(indptr + frame + 1) - tl.load(indptr + frame)
    used = tl.cdiv(num_rows, BLOCK_R)
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
