"""Subspace-aware scoring: a prior over key heads from the mutual information of scores and screen position.

STaR-KV (arXiv 2606.01790), section on subspace-aware spatial scoring.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from star_kv_sglang.algorithm.batch import ScoringBatch, own_part, per_request, stack_states

if TYPE_CHECKING:
    from collections.abc import Sequence

    from star_kv_sglang.algorithm.state import TrajectoryState


MI_RESOLUTION = 1e-4
"""Nats. Sums of float32 differ by less than this from the exact mutual information. On a screenshot of which every
token has a position bin of its own, all groups tell everything about the position, and differ by rounding alone."""


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
    running = torch.lerp(mi, stored, per_request(decays, mi.device))
    return [own_part(running, r) if used else states[r].mi_ema for r, used in enumerate(measured)]
