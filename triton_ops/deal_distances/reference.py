"""A token's distance, dealt out to the key heads as the distances of its values are, in plain torch."""

from __future__ import annotations

import torch


def deal_distances(distances: torch.Tensor, own: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """Saliency [L, G, V], in `out`; shapes and meaning as in `op.deal_distances`."""
    mean = own.mean(dim=1, keepdim=True)
    share = torch.where(mean > 0, own / torch.where(mean > 0, mean, 1.0), 1.0)
    return out.copy_(distances[:, None] * share)
