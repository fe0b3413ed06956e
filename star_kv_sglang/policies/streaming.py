"""StreamingLLM (arXiv 2309.17453): sinks and the most recent tokens.

The sinks are text, which always stays; of the screenshots the most recent tokens stay.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from star_kv_sglang.policies.base.interface import KVPolicy, Observation, PolicyScores, Queries
from star_kv_sglang.policies.base.params import WindowParams


@dataclass(frozen=True)
class Params(WindowParams):
    """The window's tokens are kept before all others."""


class Policy(KVPolicy[Params]):
    """The later, the better."""

    queries = Queries.NONE

    def score(self, seen: Observation) -> PolicyScores:
        """Each token's index among the live tokens."""
        age = torch.arange(seen.bounds[-1], dtype=torch.float32, device=seen.slots.device)
        return PolicyScores.of(age.expand(len(seen.keys), -1).clone(), seen)
