"""Mean hidden state of each screenshot, in plain torch."""

from __future__ import annotations

from itertools import pairwise

import torch


def frame_means(hidden: torch.Tensor, indptr: torch.Tensor, *, max_rows: int) -> torch.Tensor:
    """Mean of the rows of each frame; shapes and meaning as in `op.frame_means`."""
    del max_rows
    bounds = indptr.tolist()
    frames = [hidden[start:end].float() for start, end in pairwise(bounds)]
    if not frames:
        return hidden.new_zeros((0, hidden.shape[1]), dtype=torch.float32)
    return torch.stack([rows.sum(dim=0) / max(len(rows), 1) for rows in frames])
