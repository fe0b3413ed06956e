"""Subspace-aware scoring: a prior over key heads from the mutual information of scores and screen position.

STaR-KV (arXiv 2606.01790), section on subspace-aware spatial scoring.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from star_kv_sglang.algorithm.batch import ScoringBatch, per_request, stack_states

if TYPE_CHECKING:
    from collections.abc import Sequence

    from star_kv_sglang.algorithm.state import TrajectoryState


MI_RESOLUTION = 1e-4
"""Nats. Sums of float32 differ by less than this from the exact mutual information."""


def advance_prior(
    batch: ScoringBatch, states: Sequence[TrajectoryState], advancing: Sequence[bool]
) -> list[TrajectoryState]:
    """States one step further, with the current screenshot's mutual information folded in."""
    measured = [
        flag and batch.params.prior and layout.frames[-1].num_live > 0
        for flag, layout in zip(advancing, batch.layouts, strict=True)
    ]
    mi_emas = _running_mi(batch, states, measured)
    return [
        replace(state, step=state.step + 1, num_frames=layout.num_frames_total, mi_ema=mi) if flag else state
        for state, layout, mi, flag in zip(states, batch.layouts, mi_emas, advancing, strict=True)
    ]


def head_weights(mi_ema: torch.Tensor, tau: float) -> torch.Tensor:
    """Softmax over the groups (last dimension) of the min-max normalised information; uniform when all are equal.

    On a screenshot of which every token has a position bin of its own, all groups tell everything about the position.
    What their sums then differ by is rounding, which the normalisation would blow up to the whole range.
    """
    low, high = mi_ema.amin(dim=-1, keepdim=True), mi_ema.amax(dim=-1, keepdim=True)
    spread = high - low
    told_apart = spread > MI_RESOLUTION
    normalised = torch.where(told_apart, (mi_ema - low) / torch.where(told_apart, spread, 1.0), 0.5)
    return (normalised / tau).softmax(dim=-1)


def group_factors(weights: torch.Tensor, prior_weights: Sequence[float]) -> torch.Tensor:
    """Factor of a token whose strongest group is g, from `weights` [L, R, G] and the prior's weight of each request.

    (1 - lambda) + lambda * G * weight: 1 on average over the groups.
    """
    lam = per_request(prior_weights, weights.device)
    return (1.0 - lam) + lam * weights.shape[-1] * weights


def _running_mi(
    batch: ScoringBatch, states: Sequence[TrajectoryState], measured: Sequence[bool]
) -> list[torch.Tensor | None]:
    """Running mutual information [L, G] of each request after this prompt; unchanged where nothing was measured."""
    if not any(measured):
        return [state.mi_ema for state in states]
    mi = batch.ops.spatial_mi(
        batch.group_scores, batch.frame_offsets, batch.spans_of(measured), batch.grids, max_span=batch.max_span
    )
    stored = stack_states([state.mi_ema for state in states], batch.empty_per_group)
    decays = [0.0 if state.mi_ema is None else batch.params.prior_ema for state in states]
    decay = per_request(decays, mi.device)
    running = decay * stored + (1.0 - decay) * mi
    return [running[:, r].clone() if used else states[r].mi_ema for r, used in enumerate(measured)]
