"""Scores of tokens, remembered in the side pool for pruning them again, in plain torch."""

from __future__ import annotations

import torch


def keep_scores(
    scores: torch.Tensor,
    again: torch.Tensor | None,
    slots: torch.Tensor,
    segment_ids: torch.Tensor | None,
    kept: torch.Tensor,
) -> torch.Tensor:
    """Write them to `kept` [U, num_slots]; shapes and meaning as in `op.keep_scores`."""
    slots = slots.long()
    if again is not None:
        scores = torch.where(again.isnan(), scores, again)
    scores = scores.clamp(max=torch.finfo(torch.float16).max).to(torch.float16)
    if segment_ids is not None:
        scores = torch.where(segment_ids[slots] == 0, scores, kept[:, slots])
    kept[:, slots] = scores
    return kept
