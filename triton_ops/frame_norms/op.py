"""L2 norms of hidden states into the slot-indexed side pool."""

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
from star_kv_sglang.triton_ops.frame_norms.kernel import frame_norms_kernel
from star_kv_sglang.triton_ops.launch import pow2

CHANNELS_PER_STEP = 2048


def frame_norms(
    hidden: torch.Tensor,
    slot_ids: torch.Tensor,
    norm_pool: torch.Tensor,
    centres: torch.Tensor | None = None,
    centre_ids: torch.Tensor | None = None,
) -> torch.Tensor:
    """Write the float32 L2 norm of each row of `hidden`, or its distance to a centre, to `norm_pool` at the row's slot.

    | argument | shape | dtype | |
    |---|---|---|---|
    | hidden | [n, C] | float32, float16, bfloat16 | layer input; rows any stride, channels contiguous; n may be 0 |
    | slot_ids | [n] | int32, int64 | distinct slots |
    | norm_pool | [num_slots] | float32, float16, bfloat16 | any stride; other entries are left alone; returned |
    | centres | [F, C] | float32 | contiguous; None for norms |
    | centre_ids | [n] | int32, int64 | the centre of each row; with `centres` only |

    Accumulation is float32; 2e-6 relative to the reference before rounding to the pool's dtype.

    Example:
        >>> frame_norms(hidden[is_visual], slots[is_visual], norm_pool[layer])

    Raises:
        ValueError, TypeError: an argument has the wrong shape, dtype or device.
    """
    check_shape("hidden", hidden, (None, None))
    check_shape("slot_ids", slot_ids, (hidden.shape[0],))
    check_shape("norm_pool", norm_pool, (None,))
    check_dtype("hidden", hidden, *FLOAT_DTYPES)
    check_dtype("slot_ids", slot_ids, *INT_DTYPES)
    check_dtype("norm_pool", norm_pool, *FLOAT_DTYPES)
    check_same_device(hidden, slot_ids=slot_ids, norm_pool=norm_pool)
    if centres is not None and centre_ids is not None:
        check_shape("centres", centres, (None, hidden.shape[1]))
        check_shape("centre_ids", centre_ids, (hidden.shape[0],))
        check_dtype("centres", centres, torch.float32)
        check_dtype("centre_ids", centre_ids, *INT_DTYPES)
        check_contiguous(centres=centres, centre_ids=centre_ids)
        check_same_device(hidden, centres=centres, centre_ids=centre_ids)
    elif centres is not None or centre_ids is not None:
        raise ValueError("centres and centre_ids belong together: give both, or none for norms")
    num_rows, num_channels = hidden.shape
    if hidden.stride(1) != 1:
        raise ValueError("the channels of hidden must be contiguous")
    if num_rows > 0:
        frame_norms_kernel[(num_rows,)](
            hidden,
            slot_ids,
            norm_pool,
            hidden if centres is None else centres,
            slot_ids if centre_ids is None else centre_ids,
            hidden.stride(0),
            norm_pool.stride(0),
            NUM_CHANNELS=num_channels,
            HAS_CENTRES=centres is not None,
            BLOCK_C=pow2(num_channels, 16, CHANNELS_PER_STEP),
            num_warps=4,
        )
    return norm_pool
