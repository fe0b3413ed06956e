"""The prior over key heads, from their mutual information with the place on the screen, in plain torch."""

from __future__ import annotations

import torch


def prior_factors(
    information: torch.Tensor, prior_weights: float | torch.Tensor, *, tau: float, resolution: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Softmax and factors, [L, R, G] each; shapes and meaning as in `op.prior_factors`."""
    low, high = information.amin(dim=-1, keepdim=True), information.amax(dim=-1, keepdim=True)
    spread = high - low
    apart = spread > resolution
    normalised = torch.where(apart, (information - low) / torch.where(apart, spread, 1.0), 0.5)
    weights = (normalised / tau).softmax(dim=-1)
    return weights, (1.0 - prior_weights) + prior_weights * weights.shape[-1] * weights
