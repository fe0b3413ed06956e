"""What stands out on its own screenshot, whatever was asked: for prompts whose pruned history is asked about later.

A server that keeps pruned KV between turns prunes a screenshot before the questions about it exist, and what today's
question attends to says little about the next one. This policy looks at no query. In every layer a token counts by its
layer input's distance from the mean of its screenshot. Beside a local maximum on the screen the distance counts for
less (``beside_peak``), so that the budget goes to different places and not several times to one; so it does where the
screenshot before has kept the same thing at the same place (``kept_before``). Every screenshot keeps the same share.
"""

from __future__ import annotations

import torch

from star_kv_sglang.policies.base.distinctness import by_place_in_line, distinctness
from star_kv_sglang.policies.base.interface import (
    KVPolicy,
    Norms,
    Observation,
    PolicyScores,
    Queries,
    Split,
)


class Policy(KVPolicy):
    """Ranks of the distance, peaks first or tokens beside them lowered, and copies of what was kept before."""

    queries = Queries.NONE
    split = Split.BY_SIZE
    norms = Norms.CENTRED
    scores_once = True

    def score(self, seen: Observation) -> PolicyScores:
        """What `distinctness` says of every screenshot's tokens; 0 for text."""
        scores = torch.zeros_like(seen.frame_norms)
        for request, layout in enumerate(seen.layouts):
            for index, frame in enumerate(layout.frames):
                if frame.num_live and layout.window and (request, index) not in seen.settled:
                    scores[:, seen.frame(request, index)] = distinctness(seen, request, index, self.settings)
        return PolicyScores.of(scores, seen)

    def lasting(self, seen: Observation, scored: PolicyScores) -> torch.Tensor:
        """A screenshot that shows more is worth more tokens."""
        return by_place_in_line(seen, scored, ranked=False)
