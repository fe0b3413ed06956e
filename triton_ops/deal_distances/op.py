"""A token's distance, dealt out to the key heads as the distances of its values are."""

from __future__ import annotations

import torch
import triton

from star_kv_sglang.triton_ops.checks import check_dtype, check_same_device, check_shape
from star_kv_sglang.triton_ops.deal_distances.kernel import deal_distances_kernel

TOKENS_PER_BLOCK = 512


def deal_distances(distances: torch.Tensor, own: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """Saliency of each group: the distance times the group's own over the mean of all groups' own.

    So the mean over the groups is the distance; where all own distances are 0, every group has it.

    | argument | shape | dtype | |
    |---|---|---|---|
    | distances | [L, V] | float32 | of the layer's input; tokens contiguous |
    | own | [L, G, V] | float32 | of each group's values, at least 0; tokens contiguous |
    | out | [L, G, V] | float32 | written, returned; tokens contiguous; not `own` |

    4e-7 relative to the reference.

    Raises:
        ValueError, TypeError: an argument has the wrong shape, dtype or device.
    """
    num_layers, num_groups, num_tokens = own.shape
    check_shape("distances", distances, (num_layers, num_tokens))
    check_shape("out", out, tuple(own.shape))
    for name, tensor in (("distances", distances), ("own", own), ("out", out)):
        check_dtype(name, tensor, torch.float32)
        if tensor.stride(-1) != 1:
            raise ValueError(f"{name} must be contiguous along its tokens, its strides are {list(tensor.stride())}")
    check_same_device(distances, own=own, out=out)
    if out.numel():
        deal_distances_kernel[(triton.cdiv(num_tokens, TOKENS_PER_BLOCK), num_layers)](
            distances,
            own,
            out,
            distances.stride(0),
            *own.stride()[:2],
            *out.stride()[:2],
            num_tokens,
            NUM_GROUPS=num_groups,
            BLOCK_T=TOKENS_PER_BLOCK,
            num_warps=4,
        )
    return out
