"""The axes on a saliency that no question has a part in: how far each token stands out on its screenshot.

The prior and the running patterns are those of `weigh_groups`, told of this saliency instead of the window's attention.
What they say is applied screenshot by screenshot, because ranks are made of one screenshot at a time; so the entropy
temperature is that of one screenshot here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from star_kv_sglang.algorithm.batch import ScoringBatch, stack_states
from star_kv_sglang.algorithm.pipeline import weigh_groups
from star_kv_sglang.algorithm.state import TrajectoryState

if TYPE_CHECKING:
    from collections.abc import Sequence

    from star_kv_sglang.algorithm.layout import PromptLayout
    from star_kv_sglang.algorithm.params import ScorerParams
    from star_kv_sglang.triton_ops.dispatch import Ops


@dataclass(frozen=True)
class TokenWeights:
    """What the axes say of the tokens of one screenshot, V of them.

    Attributes:
        prior: float32 [L, V], the factor of each token's strongest group.
        stability: float32 [L, V], how much that group's pattern is the running one, 0 to 1.
        fading: float32 [L, V], what is left of the token by the screenshots that came after its own; None of the
            newest, of which all is left.
    """

    prior: torch.Tensor
    stability: torch.Tensor
    fading: torch.Tensor | None


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
    """

    saliency: torch.Tensor
    factors: torch.Tensor
    rates: torch.Tensor
    stability: torch.Tensor
    states: Sequence[TrajectoryState]
    floor: float

    def of(self, request: int, span: slice, age: int) -> TokenWeights:
        """What is said of a screenshot.

        Args:
            request: Index of the request.
            span: Packed range of the screenshot's live tokens.
            age: Screenshots that came after it.
        """
        strongest = self.saliency[:, :, span].argmax(dim=1)
        fading = None
        if age > 0:
            fading = (self.floor + (1.0 - self.floor) * torch.exp(-age * self.rates[:, request])).gather(1, strongest)
        return TokenWeights(
            self.factors[:, request].gather(1, strongest), self.stability[:, request].gather(1, strongest), fading
        )


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
    return Looks(saliency, weights.factors, weights.rates, stable, weights.states, params.discount_floor)


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
    total = distances.sum(dim=1, keepdim=True)
    share = distances / torch.where(total > 0, total, 1.0)
    entropy = torch.special.entr(share).sum(dim=1, keepdim=True) / math.log(max(distances.shape[1], 2))
    entropy = torch.where(total > 0, entropy, 1.0) if distances.shape[1] > 1 else torch.ones_like(total)
    now = params.temperature_min + (params.temperature_max - params.temperature_min) * entropy
    if state is None or state.temperature_ema is None:
        return now
    smoothing = params.temperature_smoothing
    return smoothing * state.temperature_ema[:, None] + (1.0 - smoothing) * now


def with_temperature(state: TrajectoryState, temperature: torch.Tensor | None) -> TrajectoryState:
    """A state that remembers the temperature [L, 1] of its newest screenshot; the same where there is none."""
    return state if temperature is None else replace(state, temperature_ema=temperature[:, 0].clone())
