# mypy: allow-untyped-defs, allow-untyped-decorators
"""Row norms, scattered by slot."""

import triton
import triton.language as tl


@triton.jit
def frame_norms_kernel(
    hidden,  # [n, C]
    slot_ids,  # [n]
    norm_pool,  # [num_slots]
    centres,  # [F, C] float32, read with HAS_CENTRES
    centre_ids,  # [n], likewise
    hidden_stride,
    pool_stride,
    NUM_CHANNELS: tl.constexpr,
    HAS_CENTRES: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """One row per program."""
    row = tl.program_id(0)
    total = tl.zeros([BLOCK_C], tl.float32)
    base = hidden + row.to(tl.int64) * hidden_stride
    centre = centres
    if HAS_CENTRES:
        centre += tl.load(centre_ids + row).to(tl.int64) * NUM_CHANNELS
    for start in tl.static_range(0, NUM_CHANNELS, BLOCK_C):
        channel = start + tl.arange(0, BLOCK_C)
        values = tl.load(base + channel, mask=channel < NUM_CHANNELS, other=0.0).to(tl.float32)
        if HAS_CENTRES:
            values -= tl.load(centre + channel, mask=channel < NUM_CHANNELS, other=0.0)
        total += values * values
    norm = tl.sqrt(tl.sum(total, axis=0))
    slot = tl.load(slot_ids + row).to(tl.int64)
    tl.store(norm_pool + slot * pool_stride, norm.to(norm_pool.dtype.element_ty))
