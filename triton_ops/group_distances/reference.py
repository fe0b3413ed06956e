"""How far each token's vector lies from its screenshot's mean, key head by key head, in plain torch."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence


def group_distances(
    pools: Sequence[torch.Tensor], slots: torch.Tensor, indptr: torch.Tensor, counts: torch.Tensor, *, max_rows: int
) -> torch.Tensor:
    """Distances [L, G, n]; shapes and meaning as in `op.group_distances`."""
    del max_rows
    out = torch.zeros(len(pools), pools[0].shape[1], slots.shape[0], dtype=torch.float32, device=slots.device)
    for start, end in pairwise(indptr.tolist()):
        for layer, pool in enumerate(pools):
            rows = pool[slots[start:end].long()].float()
            weights = counts[layer, start:end, None, None].float()
            mean = (rows * weights).sum(dim=0) / weights.sum().clamp(min=1.0)
            out[layer, :, start:end] = (rows - mean).norm(dim=-1).T
    return out
