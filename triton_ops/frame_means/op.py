"""Mean hidden state of each screenshot, where `frame_norms` measures distances from."""

from __future__ import annotations

import torch
import triton

from star_kv_sglang.triton_ops.checks import (
    FLOAT_DTYPES,
    check_contiguous,
    check_dtype,
    check_same_device,
    check_shape,
)
from star_kv_sglang.triton_ops.frame_means.kernel import combine_sums_kernel, partial_sums_kernel
from star_kv_sglang.triton_ops.launch import pow2, scratch

ROWS_PER_BLOCK = 32
CHANNELS_PER_BLOCK = 512
BLOCKS_PER_STEP = 32
CHANNELS_PER_SUM = 64
ROWS_PER_COUNT = 2048


def frame_means(
    hidden: torch.Tensor,
    indptr: torch.Tensor,
    excess: torch.Tensor | None = None,
    *,
    max_rows: int,
    most_excess: float = 0.0,
) -> torch.Tensor:
    """Mean of the rows of each frame, of those whose excess is not too large.

    | argument | shape | dtype | |
    |---|---|---|---|
    | hidden | [n, C] | float32, float16, bfloat16 | frame after frame; rows any stride, channels contiguous |
    | indptr | [F+1] | int32 | rows of frame f are `indptr[f] : indptr[f + 1]` |
    | excess | [n] | float32 | contiguous; of `norm_excess`; None: all rows count |
    | max_rows | host int | | at least the largest frame |
    | most_excess | host float | | rows of a larger excess do not count |
    | result | [F, C] | float32 | 0 for a frame of which nothing counts; valid until the next call |

    Sums are float32 in a fixed order, so that two runs agree bit for bit; 2e-6 relative to the reference.

    Example:
        >>> centres = frame_means(hidden[is_visual], indptr, max_rows=2691)

    Raises:
        ValueError, TypeError: an argument has the wrong shape, dtype or device.
    """
    _check(hidden, indptr, excess)
    num_frames, num_channels = indptr.shape[0] - 1, hidden.shape[1]
    num_blocks = max(1, triton.cdiv(max_rows, ROWS_PER_BLOCK))
    means = scratch("frame_means", (num_frames, num_channels), torch.float32, hidden.device)
    if num_frames == 0:
        return means
    partial = scratch("frame_means.partial", (num_frames, num_blocks, num_channels), torch.float32, hidden.device)
    width = pow2(num_channels, 16, CHANNELS_PER_BLOCK)
    partial_sums_kernel[(num_frames, num_blocks, triton.cdiv(num_channels, width))](
        hidden,
        indptr,
        indptr if excess is None else excess,
        partial,
        hidden.stride(0),
        num_blocks,
        most_excess,
        HAS_EXCESS=excess is not None,
        NUM_CHANNELS=num_channels,
        BLOCK_R=ROWS_PER_BLOCK,
        BLOCK_C=width,
        num_warps=4,
    )
    combine_sums_kernel[(num_frames, triton.cdiv(num_channels, CHANNELS_PER_SUM))](
        partial,
        indptr,
        indptr if excess is None else excess,
        means,
        num_blocks,
        most_excess,
        HAS_EXCESS=excess is not None,
        NUM_CHANNELS=num_channels,
        BLOCK_R=ROWS_PER_BLOCK,
        BLOCK_N=pow2(max_rows, 16, ROWS_PER_COUNT),
        BLOCK_B=BLOCKS_PER_STEP,
        BLOCK_C=CHANNELS_PER_SUM,
        num_warps=4,
    )
    return means


def _check(hidden: torch.Tensor, indptr: torch.Tensor, excess: torch.Tensor | None) -> None:
    check_shape("hidden", hidden, (None, None))
    check_shape("indptr", indptr, (None,))
    check_dtype("hidden", hidden, *FLOAT_DTYPES)
    check_dtype("indptr", indptr, torch.int32)
    check_contiguous(indptr=indptr)
    check_same_device(hidden, indptr=indptr)
    if hidden.stride(1) != 1:
        raise ValueError("the channels of hidden must be contiguous")
    if excess is not None:
        check_shape("excess", excess, (hidden.shape[0],))
        check_dtype("excess", excess, torch.float32)
        check_contiguous(excess=excess)
        check_same_device(hidden, excess=excess)
