"""The method: from window scores to one calibrated score per layer and token, for a whole prefill batch.

The steps in order (STaR-KV, arXiv 2606.01790): spatial boost, mutual-information prior, temporal discount,
entropy temperature. Window attention and pooling (`window_scores`) run before, layer by layer; selection
(`segment_quotas`, `select_topn`) comes after. What the axes say of key heads (`weigh_groups`) does not depend on the
saliency that they are told of: `algorithm/looks.py` asks the same of one that no question has a part in.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from star_kv_sglang.algorithm.batch import ScoringBatch, advances, own_part, per_request, stack_states
from star_kv_sglang.algorithm.prior import MI_RESOLUTION, advance_prior
from star_kv_sglang.algorithm.temporal import advance_patterns, decay_rates
from star_kv_sglang.triton_ops.dispatch import default_ops

if TYPE_CHECKING:
    from collections.abc import Sequence

    from star_kv_sglang.algorithm.layout import PromptLayout
    from star_kv_sglang.algorithm.params import ScorerParams
    from star_kv_sglang.algorithm.state import TrajectoryState
    from star_kv_sglang.triton_ops.dispatch import Ops
    from star_kv_sglang.triton_ops.fuse_scores.types import FusedScores


@dataclass(frozen=True)
class GroupWeights:
    """What the axes say of each key head, by its saliency on the current screenshots.

    Attributes:
        head_weights: float32 [L, R, G], the prior's softmax over the groups.
        prior_weights: The prior's weight of each request.
        factors: float32 [L, R, G], the prior's factor of a token whose strongest group is g.
        rates: float32 [L, R, G], decay of such a token for each screenshot that came after.
        states: One per request, a step further where its prompt shows a new screenshot.
        advanced: Where it does.
    """

    head_weights: torch.Tensor
    prior_weights: tuple[float, ...]
    factors: torch.Tensor
    rates: torch.Tensor
    states: list[TrajectoryState]
    advanced: list[bool]


@dataclass(frozen=True)
class ScoreSteps:
    """Values between the steps: fused, discounted, final [L, N], head_weights [L, R, G]; prior_weights, R of them."""

    fused: torch.Tensor
    discounted: torch.Tensor
    final: torch.Tensor
    head_weights: torch.Tensor
    prior_weights: tuple[float, ...]


@dataclass(frozen=True)
class ScoredBatch:
    """Scores of a batch and the states that its branches keep.

    calibrated [L, N] float32: what each layer selects by; mean 1 over a request's past, 0 for window tokens.
    layer_mean [N] float32: its mean over the layers, what quotas are decided by.
    temperature [L, R] float32: the entropy temperature that was used.
    states: the new state of each request (the old object where nothing changed).
    steps: intermediate values, only on request.
    """

    calibrated: torch.Tensor
    layer_mean: torch.Tensor
    temperature: torch.Tensor
    states: list[TrajectoryState]
    steps: ScoreSteps | None


def score_batch(
    group_scores: torch.Tensor,
    layouts: Sequence[PromptLayout],
    kv_indptr: torch.Tensor,
    frame_offsets: torch.Tensor,
    frame_norms: torch.Tensor,
    states: Sequence[TrajectoryState],
    params: ScorerParams,
    *,
    ops: Ops | None = None,
    keep_steps: bool = False,
) -> ScoredBatch:
    """Score the live tokens of a batch in all layers.

    Args:
        group_scores: [L, G, N] float32, pooled window attention; the boost is added in place.
        layouts: one per request, in packed order.
        kv_indptr: [R+1] int32 on the device of the scores.
        frame_offsets: [L, N] integer, raster index of each token in its frame; read inside current frames only.
        frame_norms: [L, N] float, norm of each token's layer-input hidden state; read inside current frames only.
        states: one per request; never changed.
        params: the method's parameters.
        ops: kernels or references; default by device.
        keep_steps: also return intermediate values.

    Raises:
        ValueError: the layouts, states and tensors do not belong together.
    """
    if len(states) != len(layouts):
        raise ValueError(f"cannot score this batch: {len(states)} states for {len(layouts)} layouts")
    ops = ops or default_ops(group_scores.device)
    batch = ScoringBatch.build(group_scores, layouts, kv_indptr, frame_offsets, frame_norms, params, ops)
    if params.boost:
        ops.spatial_boost(
            group_scores,
            frame_norms,
            batch.spans,
            alpha=params.boost_alpha,
            temperature=params.boost_temperature,
            max_span=batch.max_span,
        )
    if not params.subspaces:
        group_scores.copy_(group_scores.mean(dim=1, keepdim=True).expand_as(group_scores))
    weights = weigh_groups(batch, states)
    fused = _fuse(batch, weights, keep_steps)
    new_states = weights.states
    if params.temperature:
        new_states = [
            replace(state, temperature_ema=own_part(fused.temperature, r)) if flag else state
            for r, (state, flag) in enumerate(zip(new_states, weights.advanced, strict=True))
        ]
    steps = None
    if fused.steps is not None:
        steps = ScoreSteps(*fused.steps, head_weights=weights.head_weights, prior_weights=weights.prior_weights)
    return ScoredBatch(fused.calibrated, fused.layer_mean, fused.temperature, new_states, steps)


def weigh_groups(batch: ScoringBatch, states: Sequence[TrajectoryState]) -> GroupWeights:
    """The prior and the temporal discount of a batch's key heads; states go a step further with a new screenshot."""
    params = batch.params
    advancing = [advances(layout, state) for layout, state in zip(batch.layouts, states, strict=True)]
    new_states = advance_patterns(batch, advance_prior(batch, states, advancing), advancing)
    stacked_mi = stack_states([state.mi_ema for state in new_states], batch.empty_per_group)
    prior_weights = tuple(params.prior_weight(state.step) for state in new_states)
    weights, factors = batch.ops.prior_factors(
        stacked_mi, per_request(prior_weights, stacked_mi.device), tau=params.prior_tau, resolution=MI_RESOLUTION
    )
    return GroupWeights(
        weights,
        prior_weights,
        factors,
        decay_rates(batch, new_states),
        new_states,
        advancing,
    )


def _fuse(batch: ScoringBatch, weights: GroupWeights, keep_steps: bool) -> FusedScores:
    params, states = batch.params, weights.states

    def unknown() -> torch.Tensor:
        return batch.group_scores.new_full(batch.group_scores.shape[:1], math.nan)

    previous = stack_states([state.temperature_ema for state in states], unknown)
    return batch.ops.fuse_scores(
        batch.group_scores,
        batch.kv_indptr,
        batch.windows,
        batch.frame_ages,
        weights.factors,
        weights.rates,
        previous,
        discount_floor=params.discount_floor,
        temperature_range=(params.temperature_min, params.temperature_max) if params.temperature else None,
        temperature_smoothing=params.temperature_smoothing,
        max_num_live=batch.max_num_live,
        keep_steps=keep_steps,
    )
