"""Ranks of a screenshot's tokens by how far they stand out, in plain torch."""

from __future__ import annotations

import torch
from torch.nn import functional as F


def peak_ranks(
    distances: torch.Tensor,
    offsets: torch.Tensor,
    factors: torch.Tensor | None,
    *,
    rows: int,
    cols: int,
    beside_peak: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Ranks [L, V], 0 to 1, and who is beside a peak; shapes and meaning as in `op.peak_ranks`."""
    counted = distances if factors is None else distances * factors
    beside = _is_beside_peak(distances, offsets.long(), rows, cols)
    counted = counted + counted * beside * (beside_peak - 1.0)
    order = counted.argsort(dim=1, descending=True, stable=True)
    last = counted.shape[1] - 1
    values = torch.arange(last, -1, -1, device=counted.device, dtype=counted.dtype)
    return torch.empty_like(counted).scatter_(1, order, values.expand_as(counted)) / max(last, 1), beside


def laid_out(scores: torch.Tensor, offsets: torch.Tensor, rows: int, cols: int) -> torch.Tensor:
    """Scores at their places, float32 [L, 1, rows, cols]; minus infinity where no token lives. Offsets are int64."""
    board = torch.full((len(scores), rows * cols), -torch.inf, device=scores.device)
    return board.scatter_(1, offsets, scores).view(-1, 1, rows, cols)


def highest_near(board: torch.Tensor) -> torch.Tensor:
    """The highest of each place and its up to eight neighbours."""
    return F.max_pool2d(board, kernel_size=3, stride=1, padding=1)


def _is_beside_peak(distances: torch.Tensor, offsets: torch.Tensor, rows: int, cols: int) -> torch.Tensor:
    board = laid_out(distances, offsets, rows, cols)
    peaks = (board >= highest_near(board)).to(distances.dtype)
    return (highest_near(peaks) - peaks).flatten(1).gather(1, offsets)
