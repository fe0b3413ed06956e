"""The few tokens of each screenshot whose activations are massive, marked in the side pool."""

from __future__ import annotations

import torch

from star_kv_sglang.triton_ops.checks import (
    FLOAT_DTYPES,
    INT_DTYPES,
    check_contiguous,
    check_dtype,
    check_same_device,
    check_shape,
)
from star_kv_sglang.triton_ops.launch import pow2
from star_kv_sglang.triton_ops.mark_sinks.kernel import mark_sinks_kernel

MAX_TILE = 4096


def mark_sinks(
    excess: torch.Tensor,
    indptr: torch.Tensor,
    slots: torch.Tensor,
    norms: torch.Tensor,
    *,
    ratio: float,
    most: int,
    max_rows: int,
) -> torch.Tensor:
    """Give the `most` tokens of each frame with the largest excess above `ratio` an infinite norm in every layer.

    Of equal ones the first is taken.

    | argument | shape | dtype | |
    |---|---|---|---|
    | excess | [n] | float32 | contiguous, at least 0 |
    | indptr | [F+1] | int32 | rows of frame f are `indptr[f] : indptr[f + 1]` |
    | slots | [n] | int32, int64 | contiguous |
    | norms | [L, num_slots] | float32, float16, bfloat16 | contiguous; written, returned |
    | max_rows | host int | | at least the largest frame |

    Raises:
        ValueError, TypeError: an argument has the wrong shape, dtype or device.
    """
    check_shape("excess", excess, (None,))
    check_shape("indptr", indptr, (None,))
    check_shape("slots", slots, tuple(excess.shape))
    check_shape("norms", norms, (None, None))
    check_dtype("excess", excess, torch.float32)
    check_dtype("indptr", indptr, torch.int32)
    check_dtype("slots", slots, *INT_DTYPES)
    check_dtype("norms", norms, *FLOAT_DTYPES)
    check_same_device(excess, indptr=indptr, slots=slots, norms=norms)
    check_contiguous(excess=excess, indptr=indptr, slots=slots, norms=norms)
    num_frames, (num_layers, num_slots) = indptr.shape[0] - 1, norms.shape
    if num_frames > 0 and excess.shape[0] and num_layers:
        mark_sinks_kernel[(num_frames,)](
            excess,
            indptr,
            slots,
            norms,
            ratio,
            num_slots,
            num_layers,
            MOST=most,
            BLOCK_R=pow2(max_rows, 16, MAX_TILE),
            BLOCK_L=pow2(num_layers, 2),
            num_warps=8,
        )
    return norms
