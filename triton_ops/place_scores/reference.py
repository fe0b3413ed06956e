"""Scores that compare over screenshots, by each token's place in the order of its own, in plain torch."""

from __future__ import annotations

import math

import torch


def place_scores(
    places: torch.Tensor,
    distances: torch.Tensor,
    beside: torch.Tensor,
    fading: torch.Tensor | None,
    previous_temperature: torch.Tensor | None,
    *,
    prominent: float,
    temperature_range: tuple[float, float] | None,
    temperature_smoothing: float,
) -> torch.Tensor:
    """Scores [L, V]; shapes and meaning as in `op.place_scores`."""
    if not distances.shape[1]:
        return torch.zeros_like(distances)
    usual = distances.median(dim=1, keepdim=True).values
    shown = ((distances > prominent * usual) & (beside == 0)).sum(dim=1, keepdim=True).clamp(min=1).float()
    scores = shown / (shown + places)
    if fading is not None:
        scores = scores * fading
    if temperature_range is None:
        return scores
    low, high = temperature_range
    temperature = low + (high - low) * normalised_entropy(distances)
    if previous_temperature is not None:
        known = previous_temperature[:, None]
        temperature = temperature_smoothing * known + (1.0 - temperature_smoothing) * temperature
    return scores ** (1.0 / temperature)


def normalised_entropy(distances: torch.Tensor) -> torch.Tensor:
    """Entropy of how a layer's tokens stand out, over that of a flat screenshot, [L, V] to [L, 1].

    Nothing that stands out, or a single token, counts as flat.
    """
    total = distances.sum(dim=1, keepdim=True)
    share = distances / torch.where(total > 0, total, 1.0)
    entropy = torch.special.entr(share).sum(dim=1, keepdim=True) / math.log(max(distances.shape[1], 2))
    return torch.where(total > 0, entropy, 1.0) if distances.shape[1] > 1 else torch.ones_like(total)
