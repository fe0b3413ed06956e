# mypy: allow-untyped-defs, allow-untyped-decorators
"""One read and one write of each score."""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["num_tokens"])
def keep_scores_kernel(
    scores,  # [U, N] float32
    again,  # [U, N] float32, read when HAS_AGAIN
    slots,  # [N] integer
    segment_ids,  # [num_slots] int32, read when HAS_IDS
    kept,  # [U, num_slots] float16
    num_slots,
    num_tokens,
    HAS_AGAIN: tl.constexpr,
    HAS_IDS: tl.constexpr,
    BLOCK_T: tl.constexpr,
):
    """BLOCK_T tokens of one unit."""
    unit = tl.program_id(1).to(tl.int64)
    token = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    exists = token < num_tokens
    slot = tl.load(slots + token, mask=exists, other=0).to(tl.int64)
    writes = exists
    if HAS_IDS:
        writes = exists & (tl.load(segment_ids + slot, mask=exists, other=1) == 0)
    score = tl.load(scores + unit * num_tokens + token, mask=writes, other=0.0)
    if HAS_AGAIN:
        other = tl.load(again + unit * num_tokens + token, mask=writes, other=0.0)
        score = tl.where(other == other, other, score)
    # The largest number of float16; NaN stays NaN.
    score = tl.where(score > 65504.0, 65504.0, score)
    tl.store(kept + unit * num_slots + slot, score.to(tl.float16), mask=writes)
