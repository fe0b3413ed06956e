"""The few tokens of each screenshot whose activations are massive, marked in the side pool, in plain torch."""

from __future__ import annotations

import math
from itertools import pairwise

import torch


def mark_sinks(
    excess: torch.Tensor,
    indptr: torch.Tensor,
    slots: torch.Tensor,
    norms: torch.Tensor,
    *,
    ratio: float,
    most: int,
    max_rows: int,
) -> torch.Tensor:
    """Mark them in `norms` [L, num_slots]; shapes and meaning as in `op.mark_sinks`."""
    del max_rows
    for start, end in pairwise(indptr.tolist()):
        largest, rows = excess[start:end].sort(descending=True, stable=True)
        norms[:, slots[start:end][rows[:most]][largest[:most] > ratio].long()] = math.inf
    return norms
