"""Uniform choice: the baseline that everything has to beat."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from star_kv_sglang.limits import Limit, limited
from star_kv_sglang.policies.base.interface import KVPolicy, Observation, PolicyScores, Queries, Split
from star_kv_sglang.policies.base.params import WindowParams


@dataclass(frozen=True)
class Params(WindowParams):
    """The window's tokens are kept before all others.

    Attributes:
        seed: Of the draws.
    """

    seed: int = limited(0, Limit(0, 2**40, is_whole=True))


class Policy(KVPolicy[Params]):
    """Draws anew at every prune and for every layer, from the seed and the length of the prompt."""

    queries = Queries.NONE
    split = Split.BY_SIZE

    def score(self, seen: Observation) -> PolicyScores:
        """Uniform in [0, 1), drawn on the host."""
        scores = torch.empty(len(seen.keys), seen.bounds[-1])
        for layout, first in zip(seen.layouts, seen.bounds, strict=False):
            generator = torch.Generator().manual_seed(self.params.seed * 1_000_003 + layout.num_live)
            scores[:, first : first + layout.num_live] = torch.rand(
                len(seen.keys), layout.num_live, generator=generator
            )
        return PolicyScores.of(scores.to(seen.slots.device, non_blocking=True), seen)
