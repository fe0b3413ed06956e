"""What stands out on its screenshot, and what the question asks for where the prompt was prefilled with it in view.

Two ways of serving need two scores. A prompt that brings one new screenshot belongs to a conversation whose history
lies in the cache: the screenshot is pruned now, and questions about it come later. What this turn's question attends to
says nothing about them, so that tokens are ranked by how much they stand out (`distinctness`). A prompt that brings
several new screenshots at once was sent whole, as STaR-KV (arXiv 2606.01790) assumes: its question is the one
that counts, and half of what stays is chosen by the published score, half by distinctness, which keeps the rest of the
screens legible for the turns after. ``question_share`` sets one share for all prompts.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from star_kv_sglang.algorithm.layout import PromptLayout
from star_kv_sglang.algorithm.pipeline import ScoredBatch, score_batch
from star_kv_sglang.algorithm.state import TrajectoryState
from star_kv_sglang.limits import SHARE, limited
from star_kv_sglang.policies.base.distinctness import distinctness
from star_kv_sglang.policies.base.grid import merged_ranks, places_of_ranks, ranks
from star_kv_sglang.policies.base.interface import KVPolicy, Norms, Observation, PolicyScores, Split
from star_kv_sglang.policies.base.params import DistinctnessParams, PublishedParams

SHARE_OF_WHOLE_PROMPTS = 0.5


@dataclass(frozen=True)
class Params(PublishedParams, DistinctnessParams):
    """What counts how much, and who has a say.

    Attributes:
        question_share: Share of what stays that the question chooses, in [0, 1]; None: half of a prompt that was sent
            whole, nothing of any other.
    """

    question_share: float | None = limited(None, SHARE)


class Policy(KVPolicy[Params]):
    """Two rankings of each screenshot's tokens, merged; every screenshot keeps the same share.

    When it is pruned again, a screenshot that shows more is worth more tokens.
    """

    split = Split.BY_SIZE
    norms = Norms.CENTRED
    scores_once = True

    def observes(self, layout: PromptLayout, state: TrajectoryState) -> bool:
        """Only prompts of which the question chooses a part."""
        return self.question_share(layout, state) > 0

    def question_share(self, layout: PromptLayout, state: TrajectoryState) -> float:
        """Share of each screenshot's kept tokens that the published score chooses."""
        if self.params.question_share is not None:
            return self.params.question_share
        return SHARE_OF_WHOLE_PROMPTS if layout.num_frames_total - state.num_frames > 1 else 0.0

    def score(self, seen: Observation) -> PolicyScores:
        """Merged ranks, 0 to 1; screenshots compete by the published score where the question has a share."""
        shares = [
            self.question_share(layout, state) if layout.window else 0.0
            for layout, state in zip(seen.layouts, seen.states, strict=True)
        ]
        asked = self._published(seen) if any(shares) else None
        scores = torch.zeros_like(seen.frame_norms)
        again = torch.zeros_like(scores) if seen.wants_storing else None
        for request, index in seen.scored_frames():
            span, share = seen.frame(request, index), shares[request]
            screenshot, standing_out = distinctness(seen, request, index, self.params)
            if asked is not None and share > 0:
                scores[:, span] = merged_ranks(asked.calibrated[:, span], standing_out, share)
            elif self.params.peaks and self.params.beside_peak == 0:
                scores[:, span] = ranks(standing_out)
            else:
                scores[:, span] = standing_out
            if again is not None and (request, index) not in seen.skip_storing:
                again[:, span] = screenshot.place_scores(places_of_ranks(scores[:, span]))
        layer_mean, states = scores.mean(dim=0), list(seen.states)
        for request, (layout, share) in enumerate(zip(seen.layouts, shares, strict=True)):
            if asked is not None and share:
                past = seen.past(request)
                layer_mean[past] = asked.layer_mean[past]
                states[request] = asked.states[request]
            elif layout.window:
                states[request] = replace(states[request], num_frames=layout.num_frames_total)
        return PolicyScores(scores, layer_mean, states, again)

    def _published(self, seen: Observation) -> ScoredBatch:
        """The published scorer; its boost goes to what stands out from the screenshot's mean."""
        return score_batch(
            seen.attended,
            seen.layouts,
            seen.kv_indptr,
            seen.frame_offsets,
            seen.frame_norms,
            seen.states,
            self.params.scorer,
            ops=seen.ops,
        )
