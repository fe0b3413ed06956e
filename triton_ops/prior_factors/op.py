"""The prior over key heads, from their mutual information with the place on the screen."""

from __future__ import annotations

import torch

from star_kv_sglang.triton_ops.checks import (
    check_contiguous,
    check_dtype,
    check_positive,
    check_same_device,
    check_shape,
)
from star_kv_sglang.triton_ops.launch import pow2
from star_kv_sglang.triton_ops.prior_factors.kernel import prior_factors_kernel


def prior_factors(
    information: torch.Tensor, prior_weights: float | torch.Tensor, *, tau: float, resolution: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Softmax over the groups of the min-max normalised information, and what it multiplies a token's score by.

    Groups that differ by no more than `resolution` count as equal: every token of a small screenshot has a position bin
    of its own, so that all groups tell everything, and what their sums differ by is rounding. Factor of a token whose
    strongest group is g: `(1 - w) + w * G * softmax[g]`, with w the prior's weight of its request; 1 on average.
    STaR-KV (arXiv 2606.01790), subspace-aware spatial scoring.

    | argument | shape | dtype | |
    |---|---|---|---|
    | information | [L, R, G] | float32 | contiguous, nats |
    | prior_weights | number, or [R, 1] | float32 | of all requests, or of each; contiguous |
    | tau, resolution | host float | | above 0 |
    | result | two of [L, R, G] | float32 | softmax, factors |

    1e-6 relative to the reference.

    Raises:
        ValueError, TypeError: an argument has the wrong shape, dtype or device.
    """
    num_layers, num_requests, num_groups = information.shape
    check_dtype("information", information, torch.float32)
    check_contiguous(information=information)
    check_positive(tau=tau, resolution=resolution)
    table = prior_weights if isinstance(prior_weights, torch.Tensor) else None
    if table is not None:
        check_shape("prior_weights", table, (num_requests, 1))
        check_dtype("prior_weights", table, torch.float32)
        check_same_device(information, prior_weights=table)
        check_contiguous(prior_weights=table)
    weights, factors = torch.empty_like(information), torch.empty_like(information)
    if information.numel():
        prior_factors_kernel[(num_layers, num_requests)](
            information,
            information if table is None else table,
            weights,
            factors,
            0.0 if table is not None else prior_weights,
            1.0 / tau,
            resolution,
            num_requests,
            NUM_GROUPS=num_groups,
            HAS_TABLE=table is not None,
            BLOCK_G=pow2(num_groups, 2),
            num_warps=1,
        )
    return weights, factors
