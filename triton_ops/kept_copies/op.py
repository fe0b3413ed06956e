"""Which tokens an earlier screenshot has kept a copy of."""

from __future__ import annotations

import torch

from star_kv_sglang.triton_ops.checks import (
    INT_DTYPES,
    check_dtype,
    check_positive,
    check_same_device,
    check_shape,
)
from star_kv_sglang.triton_ops.kept_copies.kernel import kept_copies_kernel
from star_kv_sglang.triton_ops.launch import pow2, scratch

MAX_TILE = 1024


def kept_copies(
    distances: torch.Tensor,
    offsets: torch.Tensor,
    earlier_distances: torch.Tensor,
    earlier_offsets: torch.Tensor,
    *,
    num_places: int,
    tolerance: float,
) -> torch.Tensor:
    """Whether a token of an earlier screenshot at the same place has about the same distance: within `tolerance` of it.

    | argument | shape | dtype | |
    |---|---|---|---|
    | distances | [L, V] | float32 | finite; tokens contiguous |
    | offsets | [L, V] | int16, int32, int64 | place of each, below `num_places`; tokens contiguous |
    | earlier_distances, earlier_offsets | [L, W] | likewise | what lives of the earlier screenshot, of the same grid |
    | num_places | host int | | of the grid |
    | result | [L, V] | float32 | 0 or 1 |

    Raises:
        ValueError, TypeError: an argument has the wrong shape, dtype or device.
    """
    num_layers, num_tokens = distances.shape
    check_shape("offsets", offsets, (num_layers, num_tokens))
    check_shape("earlier_distances", earlier_distances, (num_layers, None))
    check_shape("earlier_offsets", earlier_offsets, tuple(earlier_distances.shape))
    for name, tensor in (("distances", distances), ("earlier_distances", earlier_distances)):
        check_dtype(name, tensor, torch.float32)
    for name, tensor in (("offsets", offsets), ("earlier_offsets", earlier_offsets)):
        check_dtype(name, tensor, torch.int16, *INT_DTYPES)
    tensors = {"offsets": offsets, "earlier_distances": earlier_distances, "earlier_offsets": earlier_offsets}
    check_same_device(distances, **tensors)
    for name, tensor in {"distances": distances, **tensors}.items():
        if tensor.stride(1) != 1:
            raise ValueError(f"{name} must be contiguous along its tokens, its strides are {list(tensor.stride())}")
    check_positive(num_places=num_places)
    out = torch.empty(num_layers, num_tokens, dtype=torch.float32, device=distances.device)
    if num_layers and num_tokens:
        kept_copies_kernel[(num_layers,)](
            distances,
            offsets,
            earlier_distances,
            earlier_offsets,
            scratch("kept_copies", (num_layers, num_places), torch.float32, distances.device),
            out,
            distances.stride(0),
            offsets.stride(0),
            earlier_distances.stride(0),
            earlier_offsets.stride(0),
            num_tokens,
            earlier_distances.shape[1],
            num_places,
            tolerance,
            BLOCK_T=pow2(num_places, 16, MAX_TILE),
            num_warps=8,
        )
    return out
