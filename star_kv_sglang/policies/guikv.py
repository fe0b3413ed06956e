"""GUI-KV: window attention with a spatial boost, and earlier screenshots that the current one explains go first."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from star_kv_sglang.algorithm.params import ScorerParams
from star_kv_sglang.limits import NOT_NEGATIVE, POSITIVE, limited
from star_kv_sglang.policies.base.interface import KVPolicy, Norms, Observation, PolicyScores
from star_kv_sglang.policies.base.params import PoolParams, WindowParams
from star_kv_sglang.policies.base.steps import calibrate, current_spans

RANK = 32


@dataclass(frozen=True)
class Params(WindowParams, PoolParams):
    """Of the window's attention, and of its boost.

    Attributes:
        boost_alpha: Weight of the boost of tokens that stand out on the current screenshot.
        boost_temperature: How evenly the boost is spread.
    """

    boost_alpha: float = limited(ScorerParams.boost_alpha, NOT_NEGATIVE)
    boost_temperature: float = limited(ScorerParams.boost_temperature, POSITIVE)


class Policy(KVPolicy[Params]):
    """Of the earlier screenshots' tokens only the budget's share with the largest residuals competes with the rest."""

    needs_one_rank = True
    norms = Norms.INPUT

    def score(self, seen: Observation) -> PolicyScores:
        """Boosted attention, and the redundant part of the past behind everything else."""
        attention = seen.attended
        spans = [seen.frame(r, -1) for r, layout in enumerate(seen.layouts) if layout.frames and layout.window]
        seen.ops.spatial_boost(
            attention,
            seen.frame_norms,
            current_spans(seen),
            alpha=self.params.boost_alpha,
            temperature=self.params.boost_temperature,
            max_span=max((span.stop - span.start for span in spans), default=0),
        )
        scores = calibrate(attention.mean(dim=1), seen)
        for request, layout in enumerate(seen.layouts):
            if len(layout.frames) > 1 and layout.window:
                self._demote(scores, request, seen)
        return PolicyScores.of(scores, seen)

    def _demote(self, scores: torch.Tensor, request: int, seen: Observation) -> None:
        """Put all but the least explained tokens of a request's earlier screenshots below its other tokens."""
        frames = [seen.frame(request, i) for i in range(len(seen.layouts[request].frames))]
        earlier = torch.cat([torch.arange(f.start, f.stop) for f in frames[:-1]])
        earlier = earlier.to(seen.slots.device, non_blocking=True)
        num_redundant = len(earlier) - math.ceil(seen.budgets[request] * len(earlier))
        if num_redundant == 0 or frames[-1].stop == frames[-1].start:
            return
        past = seen.past(request)
        for layer, keys in enumerate(seen.keys):
            residuals = span_residuals(keys[seen.slots[earlier]], keys[seen.slots[frames[-1]]])
            redundant = earlier[residuals.argsort(stable=True)[:num_redundant]]
            scores[layer, redundant] -= scores[layer, past].max() + 1


def span_residuals(keys: torch.Tensor, basis: torch.Tensor, rank: int = RANK) -> torch.Tensor:
    """Share of each key outside of the span of the strongest directions of other keys, mean over the heads.

    Args:
        keys: [T, G, D].
        basis: [V, G, D].
        rank: Directions that count, the right singular vectors of the ``basis`` of each head.

    Returns:
        float32 [T], 0 for keys that the span explains, at most 1.
    """
    wanted, given = keys.float().transpose(0, 1), basis.float().transpose(0, 1)
    directions = torch.linalg.eigh(given.transpose(1, 2) @ given).eigenvectors[..., -min(rank, len(basis)) :]
    inside = (wanted @ directions).norm(dim=-1)
    total = wanted.norm(dim=-1).clamp(min=1e-12)
    residuals: torch.Tensor = (1 - (inside / total).square()).clamp(min=0).sqrt().mean(dim=0)
    return residuals
