"""What stands out on its own screenshot, whatever was asked: for prompts whose pruned history is asked about later.

A server that keeps pruned KV between turns prunes a screenshot before the questions about it exist, and what today's
question attends to says little about the next one. This policy looks at no query. In every layer a token counts by its
layer input's distance from the mean of its screenshot. Beside a local maximum on the screen the distance counts for
less (``beside_peak``), so that the budget goes to different places and not several times to one; so it does where the
screenshot before has kept the same thing at the same place (``kept_before``). Every screenshot keeps the same share.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from star_kv_sglang.policies.base.distinctness import distinctness
from star_kv_sglang.policies.base.grid import places
from star_kv_sglang.policies.base.interface import KVPolicy, Norms, Observation, PolicyScores, Queries, Split
from star_kv_sglang.policies.base.params import DistinctnessParams, WindowParams


@dataclass(frozen=True)
class Params(WindowParams, DistinctnessParams):
    """What counts how much."""


class Policy(KVPolicy[Params]):
    """Ranks of the distance, peaks first or tokens beside them lowered, and copies of what was kept before.

    When it is pruned again, a screenshot that shows more is worth more tokens.
    """

    queries = Queries.NONE
    split = Split.BY_SIZE
    norms = Norms.CENTRED
    scores_once = True

    def score(self, seen: Observation) -> PolicyScores:
        """Ranks of every screenshot's tokens; 0 for text."""
        scores = torch.zeros_like(seen.frame_norms)
        again = torch.zeros_like(scores) if seen.wants_storing else None
        for request, index in seen.scored_frames():
            span = seen.frame(request, index)
            ranked = distinctness(seen, request, index, self.params)
            scores[:, span] = ranked.ranks
            if again is not None and (request, index) not in seen.skip_storing:
                again[:, span] = ranked.place_scores(places(ranked.ranks))
        return PolicyScores(scores, scores.mean(dim=0), seen.states, again)
