"""What the side pools say of a batch's live tokens, in plain torch."""

from __future__ import annotations

import torch


def gather_frames(
    norms: torch.Tensor, offsets: torch.Tensor, slots: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Norms [L, N], sinks [L, N] and offsets [U, N]; shapes and meaning as in `op.gather_frames`."""
    slots = slots.long()
    found = norms[:, slots].float()
    sinks = found.isposinf()
    return found.masked_fill(sinks, 0.0), sinks, offsets[:, slots]
