"""What a token's strongest key head, and what was kept before, multiply its distance by, in plain torch."""

from __future__ import annotations

import torch


def token_factors(
    saliency: torch.Tensor,
    group_factors: torch.Tensor,
    stability: torch.Tensor,
    copies: torch.Tensor | None,
    *,
    kept_before: float,
) -> torch.Tensor:
    """Factors [L, V]; shapes and meaning as in `op.token_factors`."""
    strongest = saliency.argmax(dim=1)
    factors = group_factors.gather(1, strongest)
    if copies is None:
        return factors
    return factors * (1.0 - (1.0 - kept_before) * copies * stability.gather(1, strongest))
