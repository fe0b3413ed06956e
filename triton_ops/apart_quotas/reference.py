"""Quotas that grow by the tokens that stay beside the budget, in plain torch."""

from __future__ import annotations

import torch


def apart_quotas(
    quotas: torch.Tensor,
    apart: torch.Tensor,
    segments: torch.Tensor,
    known: torch.Tensor,
    *,
    most: int,
    page_size: int,
    max_segment: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Quotas and tokens apart, [S] int32 each; shapes and meaning as in `op.apart_quotas`."""
    del max_segment
    before = torch.cat([apart.new_zeros(1, dtype=torch.int32), apart.cumsum(0, dtype=torch.int32)])
    found = (before[segments[:, 1].long()] - before[segments[:, 0].long()]).clamp(max=most)
    found = (found + page_size - 1) // page_size * page_size
    grown = quotas + torch.where(known < 0, found, 0)
    return torch.minimum(grown, segments[:, 1] - segments[:, 0]), torch.where(known < 0, found, known)
