"""Temporal stability discount: earlier screenshots fade, faster where a key head's pattern is stable.

STaR-KV (arXiv 2606.01790), section on temporal discounting.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import accumulate
from typing import TYPE_CHECKING

import torch

from star_kv_sglang.algorithm.batch import ScoringBatch, joined, own_part, stack_states
from star_kv_sglang.algorithm.to_device import to_device

if TYPE_CHECKING:
    from collections.abc import Sequence

    from star_kv_sglang.algorithm.state import TrajectoryState


def advance_patterns(
    batch: ScoringBatch, states: Sequence[TrajectoryState], advancing: Sequence[bool]
) -> list[TrajectoryState]:
    """States with the current screenshots' patterns folded in; a pattern restarts when its length changes."""
    sizes = [
        layout.frames[-1].num_live if flag and len(layout.frames) >= 2 and batch.params.temporal else 0
        for layout, flag in zip(batch.layouts, advancing, strict=True)
    ]
    if not any(sizes):
        return list(states)
    previous, known = _previous_patterns(batch, states, sizes)
    bounds = list(accumulate(sizes, initial=0))
    running = torch.empty_like(previous)
    stability = batch.ops.frame_stability(
        batch.group_scores,
        batch.spans_of([size > 0 for size in sizes]),
        previous,
        to_device(known, previous.device, torch.bool),
        to_device(bounds, previous.device),
        rho=batch.params.discount_rho,
        max_span=batch.max_span,
        out_pattern=running,
    )
    # Copies, so that a branch's state does not keep the whole batch's tensors alive.
    patterns = [running] if len(sizes) == 1 else [part.clone() for part in running.split(sizes, dim=2)]
    return [
        replace(state, pattern_ema=patterns[r], stability=own_part(stability, r)) if size else state
        for r, (state, size) in enumerate(zip(states, sizes, strict=True))
    ]


def decay_rates(batch: ScoringBatch, states: Sequence[TrajectoryState]) -> torch.Tensor:
    """Decay per screenshot of age [L, R, G]; 0 for a prompt with fewer than two screenshots."""
    params = batch.params
    discounted = [params.temporal and len(layout.frames) >= 2 for layout in batch.layouts]
    stability = stack_states([state.stability for state in states], batch.one_per_group)
    rate = params.discount_delta * (params.discount_eps + (1.0 - params.discount_eps) * stability)
    if all(discounted):
        return rate
    if not any(discounted):
        return torch.zeros_like(rate)
    return torch.where(to_device(discounted, rate.device, torch.bool)[:, None], rate, 0.0)


def _previous_patterns(
    batch: ScoringBatch, states: Sequence[TrajectoryState], sizes: Sequence[int]
) -> tuple[torch.Tensor, list[bool]]:
    """Stored patterns packed to [L, G, sum of sizes], and whether each request has one of the right length."""
    num_layers, num_groups, _ = batch.group_scores.shape
    dtype = getattr(torch, batch.params.pattern_dtype)
    known, parts = [], []
    for state, size in zip(states, sizes, strict=True):
        stored = state.pattern_ema
        usable = stored is not None and stored.shape[2] == size
        known.append(usable)
        if stored is not None and usable:
            parts.append(stored.to(dtype))
        else:
            parts.append(torch.zeros(num_layers, num_groups, size, dtype=dtype, device=batch.group_scores.device))
    return joined(parts), known
