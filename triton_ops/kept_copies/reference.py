"""Which tokens an earlier screenshot has kept a copy of, in plain torch."""

from __future__ import annotations

import torch


def kept_copies(
    distances: torch.Tensor,
    offsets: torch.Tensor,
    earlier_distances: torch.Tensor,
    earlier_offsets: torch.Tensor,
    *,
    num_places: int,
    tolerance: float,
) -> torch.Tensor:
    """Copies [L, V], 0 or 1; shapes and meaning as in `op.kept_copies`."""
    board = torch.full((len(distances), num_places), -torch.inf, device=distances.device)
    board.scatter_(1, earlier_offsets.long(), earlier_distances)
    copies = board.gather(1, offsets.long())
    return ((copies - distances).abs() <= tolerance * distances).to(distances.dtype)
