"""Mean hidden state of each screenshot, in plain torch."""

from __future__ import annotations

from itertools import pairwise

import torch


def frame_means(
    hidden: torch.Tensor,
    indptr: torch.Tensor,
    excess: torch.Tensor | None = None,
    *,
    max_rows: int,
    most_excess: float = 0.0,
) -> torch.Tensor:
    """Mean of the rows of each frame; shapes and meaning as in `op.frame_means`."""
    del max_rows
    bounds = indptr.tolist()
    frames = [hidden[start:end].float() for start, end in pairwise(bounds)]
    if not frames:
        return hidden.new_zeros((0, hidden.shape[1]), dtype=torch.float32)
    if excess is not None:
        counted = [excess[start:end] <= most_excess for start, end in pairwise(bounds)]
        frames = [rows[used] for rows, used in zip(frames, counted, strict=True)]
    return torch.stack([rows.sum(dim=0) / max(len(rows), 1) for rows in frames])
