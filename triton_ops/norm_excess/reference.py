"""How much larger a token's norm is than the usual one of its screenshot, in plain torch."""

from __future__ import annotations

from itertools import pairwise

import torch


def norm_excess(norms: torch.Tensor, indptr: torch.Tensor, excess: torch.Tensor, *, max_rows: int) -> torch.Tensor:
    """Raise `excess` to each norm over its frame's median; shapes and meaning as in `op.norm_excess`."""
    del max_rows
    for start, end in pairwise(indptr.tolist()):
        if end > start:
            usual = norms[start:end].median()
            ratio = torch.where(usual > 0, norms[start:end] / usual, 0.0)
            excess[start:end] = torch.maximum(excess[start:end], ratio)
    return excess
