"""H2O (arXiv 2306.14048): attention accumulated over all queries that were prefilled."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from star_kv_sglang.policies.base.interface import KVPolicy, Observation, PolicyScores, Queries
from star_kv_sglang.policies.base.params import WindowParams
from star_kv_sglang.policies.base.steps import calibrate


@dataclass(frozen=True)
class Params(WindowParams):
    """The window's tokens are kept before all others."""


class Policy(KVPolicy[Params]):
    """Sums go on from turn to turn: a token keeps what earlier turns' queries gave it."""

    queries = Queries.ALL

    def score(self, seen: Observation) -> PolicyScores:
        """The sums of visual tokens; text that was decoded has none."""
        visual = torch.zeros(seen.bounds[-1], dtype=torch.bool)
        for request, layout in enumerate(seen.layouts):
            for index in range(len(layout.frames)):
                visual[seen.frame(request, index)] = True
        sums = seen.attended[:, 0].where(visual.to(seen.slots.device, non_blocking=True), 0.0)
        return PolicyScores.of(calibrate(sums, seen), seen)
