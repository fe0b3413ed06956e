"""The axes on a saliency that no question has a part in: how far each token stands out on its screenshot.

The prior and the running patterns are those of `weigh_groups`, told of this saliency instead of the window's attention.
What they say is applied screenshot by screenshot, because ranks are made of one screenshot at a time; so the entropy
temperature is that of one screenshot here.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from star_kv_sglang.algorithm.batch import ScoringBatch, stack_states
from star_kv_sglang.algorithm.pipeline import weigh_groups
from star_kv_sglang.algorithm.state import TrajectoryState
from star_kv_sglang.triton_ops.place_scores.reference import normalised_entropy

if TYPE_CHECKING:
    from collections.abc import Sequence

    from star_kv_sglang.algorithm.layout import PromptLayout
    from star_kv_sglang.algorithm.params import ScorerParams
    from star_kv_sglang.triton_ops.dispatch import Ops


@dataclass(frozen=True)
class Looks:
    """What the axes say of a batch.

    Attributes:
        saliency: float32 [L, G, N], how far each token stands out, by group; 0 for text.
        factors: float32 [L, R, G], of the prior.
        rates: float32 [L, R, G], decay for each screenshot that came after.
        stability: float32 [L, R, G], 1 where no pattern is known.
        states: What each request leaves behind.
        floor: The least that a discount leaves.
        ops: Kernels or references.
    """

    saliency: torch.Tensor
    factors: torch.Tensor
    rates: torch.Tensor
    stability: torch.Tensor
    states: Sequence[TrajectoryState]
    floor: float
    ops: Ops

    def factors_of(self, request: int, span: slice, copies: torch.Tensor | None, *, kept_before: float) -> torch.Tensor:
        """What the distances of a screenshot are multiplied by, float32 [L, V]: the prior's factor of each token's
        strongest group, and less where a copy was kept before, the more stable the group's pattern is.

        Args:
            request: Index of the request.
            span: Packed range of the screenshot's live tokens.
            copies: float32 [L, V], 0 or 1; None where none is known.
            kept_before: What a copy counts where the pattern is the running one.
        """
        return self.ops.token_factors(
            self.saliency[:, :, span],
            self.factors[:, request],
            self.stability[:, request],
            copies,
            kept_before=kept_before,
        )

    def fading(self, request: int, span: slice, age: int) -> torch.Tensor | None:
        """What is left of a screenshot's tokens by ``age`` screenshots that came after it, float32 [L, V]; None of the
        newest, of which all is left.
        """
        if age == 0:
            return None
        left = self.floor + (1.0 - self.floor) * torch.exp(-age * self.rates[:, request])
        return left.gather(1, self.saliency[:, :, span].argmax(dim=1))


def weigh_looks(
    saliency: torch.Tensor,
    layouts: Sequence[PromptLayout],
    kv_indptr: torch.Tensor,
    frame_offsets: torch.Tensor,
    states: Sequence[TrajectoryState],
    params: ScorerParams,
    ops: Ops,
) -> Looks:
    """Tell the axes how far tokens stand out.

    Args:
        saliency: float32 [L, G, N], filled on every request's current screenshot at least.
        layouts: One per request, in packed order.
        kv_indptr: int32 [R + 1].
        frame_offsets: integer [L, N], raster index of each token in its frame.
        states: Of this saliency, one per request; never changed.
        params: The method's parameters.
        ops: Kernels or references.

    Raises:
        ValueError: The layouts, states and tensors do not belong together.
    """
    # No step that is asked for here reads norms.
    batch = ScoringBatch.build(saliency, layouts, kv_indptr, frame_offsets, frame_offsets, params, ops)
    weights = weigh_groups(batch, states)
    stable = stack_states([state.stability for state in weights.states], batch.one_per_group)
    return Looks(saliency, weights.factors, weights.rates, stable, weights.states, params.discount_floor, ops)


def entropy_temperature(
    distances: torch.Tensor, state: TrajectoryState | None, params: ScorerParams
) -> torch.Tensor | None:
    """Temperature of a screenshot in each layer, float32 [L, 1]; None where the axis is off.

    From ``temperature_min`` to ``temperature_max`` with the entropy of how its tokens stand out, over that of a flat
    screenshot; nothing that stands out, or a single token, counts as flat.

    Args:
        distances: float32 [L, V], at least 0.
        state: Of this saliency: its last temperature has the share ``temperature_smoothing``.
        params: The method's parameters.
    """
    if not params.temperature:
        return None
    entropy = normalised_entropy(distances)
    now = params.temperature_min + (params.temperature_max - params.temperature_min) * entropy
    if state is None or state.temperature_ema is None:
        return now
    smoothing = params.temperature_smoothing
    return smoothing * state.temperature_ema[:, None] + (1.0 - smoothing) * now


def with_temperature(state: TrajectoryState, temperature: torch.Tensor | None) -> TrajectoryState:
    """A state that remembers the temperature [L, 1] of its newest screenshot; the same where there is none."""
    return state if temperature is None else replace(state, temperature_ema=temperature[:, 0].clone())
