"""How many scores of each segment lie above thresholds, in plain torch."""

from __future__ import annotations

import torch


def count_above(keys: torch.Tensor, indptr: torch.Tensor, thresholds: torch.Tensor) -> torch.Tensor:
    """The truth of the op of the same name; see there."""
    num_segments, num_thresholds = len(indptr) - 1, len(thresholds)
    owner = torch.arange(num_segments, device=keys.device).repeat_interleave(indptr.diff())
    # A key lies above the first ``rank`` thresholds.
    rank = torch.bucketize(keys.int(), thresholds)
    cells = owner * (num_thresholds + 1) + rank
    found = cells.flatten().bincount(minlength=num_segments * (num_thresholds + 1))
    by_rank = found.view(num_segments, num_thresholds + 1)
    return by_rank.flip(1).cumsum(1).flip(1)[:, 1:].T.int().contiguous()
