"""Uniform choice: the baseline that everything has to beat."""

from __future__ import annotations

import torch

from star_kv_sglang.policies.base.interface import KVPolicy, Observation, PolicyScores, Queries, Split


class Policy(KVPolicy):
    """Draws anew at every prune and for every layer, from the seed and the length of the prompt."""

    queries = Queries.NONE
    split = Split.BY_SIZE

    def score(self, seen: Observation) -> PolicyScores:
        """Uniform in [0, 1), drawn on the host."""
        scores = torch.empty(len(seen.keys), seen.bounds[-1])
        for layout, first in zip(seen.layouts, seen.bounds, strict=False):
            generator = torch.Generator().manual_seed(self.settings.seed * 1_000_003 + layout.num_live)
            scores[:, first : first + layout.num_live] = torch.rand(
                len(seen.keys), layout.num_live, generator=generator
            )
        return PolicyScores.of(scores.to(seen.slots.device, non_blocking=True), seen)
