"""STaR-KV (arXiv 2606.01790): its three axes on two saliencies.

What a token counts for is its saliency: where the question is in view, the attention of the prompt's last queries
(`window`, as published); where it is not, how far the token stands out on its own screenshot (`distinct`). Two ways of
serving need both. A prompt that brings one new screenshot belongs to a conversation whose history lies in the cache:
the screenshot is pruned now, and questions about it come later. What this turn's question attends to says nothing about
them. A prompt that brings several new screenshots at once was sent whole, as the paper assumes: its question is the one
that counts, and half of what stays is chosen by the one saliency, half by the other, which keeps the rest of the
screens legible for the turns after. ``question_share`` sets one share for all prompts.

On top of either come the axes: a prior over key heads (``prior``), a discount over time (``temporal``), a temperature
from the entropy (``temperature``). `star-paper` is this scorer with the first saliency alone.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from star_kv_sglang.algorithm.layout import PromptLayout
from star_kv_sglang.algorithm.pipeline import ScoredBatch
from star_kv_sglang.algorithm.state import TrajectoryState
from star_kv_sglang.limits import SHARE, limited
from star_kv_sglang.policies.base.axes import Look, Looker
from star_kv_sglang.policies.base.grid import merged_ranks, ranks
from star_kv_sglang.policies.base.interface import KVPolicy, Norms, Observation, PolicyScores, Split
from star_kv_sglang.policies.base.params import DistinctnessParams, PublishedParams
from star_kv_sglang.policies.base.steps import window_saliency

SHARE_OF_WHOLE_PROMPTS = 0.5


@dataclass(frozen=True)
class Params(PublishedParams, DistinctnessParams):
    """What counts how much, and who has a say.

    Attributes:
        question_share: Share of what stays that the question chooses, in [0, 1]; None: half of a prompt that was sent
            whole, nothing of any other.
        question_competes: Part of what the question chooses that screenshots compete for, in [0, 1]: the rest, and what
            the question has no say in, every screenshot keeps as large a share of.
    """

    question_share: float | None = limited(None, SHARE)
    question_competes: float = limited(0.5, SHARE)


class Policy(KVPolicy[Params]):
    """Two rankings of each screenshot's tokens, merged; every screenshot keeps the same share, but for a part of what
    the question chooses, which it may spend where it wants.

    When it is pruned again, a screenshot that shows more is worth more tokens.
    """

    split = Split.BY_SIZE
    norms = Norms.CENTRED
    scores_once = True
    saliencies = 3

    def observes(self, layout: PromptLayout, state: TrajectoryState) -> bool:
        """Only prompts of which the question chooses a part."""
        return self.question_share(layout, state) > 0

    def question_share(self, layout: PromptLayout, state: TrajectoryState) -> float:
        """Share of each screenshot's kept tokens that the published score chooses."""
        if self.params.question_share is not None:
            return self.params.question_share
        return SHARE_OF_WHOLE_PROMPTS if layout.num_frames_total - state.num_frames > 1 else 0.0

    def score(self, seen: Observation) -> PolicyScores:
        """Merged ranks, 0 to 1; screenshots compete by the window's score where the question has a share."""
        shares = [
            self.question_share(layout, state) if layout.window else 0.0
            for layout, state in zip(seen.layouts, seen.states, strict=True)
        ]
        asked = window_saliency(seen, seen.states, self.params.scorer) if any(shares) else None
        looker = Looker(seen, self.params.scorer, self.params)
        scores = torch.zeros_like(seen.frame_norms)
        again = torch.zeros_like(scores) if seen.wants_storing else None
        competing = torch.zeros_like(scores) if seen.split is Split.BY_SCORE else scores
        for request, index in seen.scored_frames():
            span, look = seen.frame(request, index), looker.look(request, index)
            window = asked.calibrated[:, span] if asked is not None and shares[request] > 0 else None
            scores[:, span] = self._merged(window, look, shares[request])
            if again is not None and (request, index) not in seen.skip_storing:
                again[:, span] = look.place_scores(scores[:, span], fades=False)
            if competing is not scores:
                competing[:, span] = look.place_scores(scores[:, span], fades=True)
        layer_mean, states = competing.mean(dim=0), []
        for request, looks in enumerate(looker.states()):
            past, is_asked = seen.past(request), asked is not None and shares[request] > 0
            if asked is not None and is_asked:
                layer_mean[past] = asked.layer_mean[past]
            states.append(self._state(seen, request, asked if is_asked else None, looks))
        floors = [1.0 - share * self.params.question_competes for share in shares]
        return PolicyScores(scores, layer_mean, states, again, floors)

    def _merged(self, window: torch.Tensor | None, look: Look, share: float) -> torch.Tensor:
        """What the tokens of a screenshot are kept by, [L, V]."""
        if window is not None:
            return merged_ranks(window, look.ranked.ranks, share)
        # A peak that comes before all others has a rank of its own, above 1.
        return ranks(look.ranked.ranks) if self.params.peaks and self.params.beside_peak == 0 else look.ranked.ranks

    @staticmethod
    def _state(seen: Observation, request: int, asked: ScoredBatch | None, looks: TrajectoryState) -> TrajectoryState:
        """What a request leaves behind: of both saliencies, where it was observed."""
        layout, state = seen.layouts[request], seen.states[request]
        if not layout.window:
            return state
        state = replace(state, num_frames=layout.num_frames_total) if asked is None else asked.states[request]
        return replace(state, looks=looks if looks.num_frames else None)
