"""STaR-KV as published (arXiv 2606.01790): the scorer of `star` with the window's attention as its only saliency.

Text and screenshots compete, and the boost goes to the norm of the layer's input, as in the paper.
"""

from __future__ import annotations

from dataclasses import dataclass

from star_kv_sglang.algorithm.state import TrajectoryState
from star_kv_sglang.policies.base.interface import KVPolicy, Norms, Observation, PolicyScores
from star_kv_sglang.policies.base.params import PublishedParams
from star_kv_sglang.policies.base.steps import window_saliency


@dataclass(frozen=True)
class Params(PublishedParams):
    """Those of the method, and one of ours.

    Attributes:
        trajectory_state: Scores build on what earlier prompts of the branch left behind.
    """

    trajectory_state: bool = True


class Policy(KVPolicy[Params]):
    """The question has all of the say, with its trajectory state inherited by branches."""

    norms = Norms.INPUT

    def score(self, seen: Observation) -> PolicyScores:
        """All steps of the method."""
        inherited = seen.states if self.params.trajectory_state else [TrajectoryState()] * len(seen.states)
        scored = window_saliency(seen, inherited, self.params.scorer)
        return PolicyScores(scored.calibrated, scored.layer_mean, scored.states)
