"""What a token's strongest key head, and what was kept before, multiply its distance by."""

from __future__ import annotations

import torch
import triton

from star_kv_sglang.triton_ops.checks import check_dtype, check_same_device, check_shape
from star_kv_sglang.triton_ops.token_factors.kernel import token_factors_kernel

TOKENS_PER_BLOCK = 512


def token_factors(
    saliency: torch.Tensor,
    group_factors: torch.Tensor,
    stability: torch.Tensor,
    copies: torch.Tensor | None,
    *,
    kept_before: float,
) -> torch.Tensor:
    """Factor of each token: that of its strongest group, times less where a copy of it was kept before.

    With g the group of the greatest saliency, the lowest of equals:
    `group_factors[g] * (1 - (1 - kept_before) * copies * stability[g])`.
    STaR-KV (arXiv 2606.01790), subspace-aware scoring and temporal discount.

    | argument | shape | dtype | |
    |---|---|---|---|
    | saliency | [L, G, V] | float32 | tokens contiguous |
    | group_factors, stability | [L, G] | float32 | any strides |
    | copies | [L, V] or None | float32 | 0 or 1, contiguous; None: no copies |
    | result | [L, V] | float32 | |

    2e-7 relative to the reference.

    Raises:
        ValueError, TypeError: an argument has the wrong shape, dtype or device.
    """
    num_layers, num_groups, num_tokens = saliency.shape
    tensors = {"group_factors": group_factors, "stability": stability}
    for name, tensor in tensors.items():
        check_shape(name, tensor, (num_layers, num_groups))
    if copies is not None:
        check_shape("copies", copies, (num_layers, num_tokens))
        tensors["copies"] = copies
        if not copies.is_contiguous():
            raise ValueError(f"copies must be contiguous, its strides are {list(copies.stride())}")
    for name, tensor in {"saliency": saliency, **tensors}.items():
        check_dtype(name, tensor, torch.float32)
    check_same_device(saliency, **tensors)
    if saliency.stride(2) != 1:
        raise ValueError(f"saliency must be contiguous along its tokens, its strides are {list(saliency.stride())}")
    out = torch.empty(num_layers, num_tokens, dtype=torch.float32, device=saliency.device)
    if num_layers and num_tokens:
        token_factors_kernel[(triton.cdiv(num_tokens, TOKENS_PER_BLOCK), num_layers)](
            saliency,
            group_factors,
            stability,
            out if copies is None else copies,
            out,
            *saliency.stride()[:2],
            *group_factors.stride(),
            *stability.stride(),
            num_tokens,
            1.0 - kept_before,
            NUM_GROUPS=num_groups,
            HAS_COPIES=copies is not None,
            BLOCK_T=TOKENS_PER_BLOCK,
            num_warps=4,
        )
    return out
