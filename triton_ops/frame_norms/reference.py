"""L2 norms of hidden states into the slot-indexed side pool, in plain torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def frame_norms(
    hidden: torch.Tensor,
    slot_ids: torch.Tensor,
    norm_pool: torch.Tensor,
    centres: torch.Tensor | None = None,
    centre_ids: torch.Tensor | None = None,
) -> torch.Tensor:
    """Write the norms of `hidden` rows to `norm_pool` at `slot_ids`; shapes and meaning as in `op.frame_norms`."""
    rows = hidden.float()
    if centres is not None and centre_ids is not None:
        rows = rows - centres[centre_ids.long()]
    norm_pool[slot_ids.long()] = rows.norm(dim=-1).to(norm_pool.dtype)
    return norm_pool
