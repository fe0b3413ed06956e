"""STaR-KV (arXiv 2606.01790): window attention, spatial boost, mutual-information prior, temporal discount."""

from __future__ import annotations

from dataclasses import dataclass

from star_kv_sglang.algorithm.pipeline import score_batch
from star_kv_sglang.algorithm.state import TrajectoryState
from star_kv_sglang.policies.base.interface import KVPolicy, Norms, Observation, PolicyScores
from star_kv_sglang.policies.base.params import PublishedParams


@dataclass(frozen=True)
class Params(PublishedParams):
    """Those of the method, and one of ours.

    Attributes:
        trajectory_state: Scores build on what earlier prompts of the branch left behind.
    """

    trajectory_state: bool = True


class Policy(KVPolicy[Params]):
    """The published scorer, with its trajectory state inherited by branches."""

    norms = Norms.INPUT

    def score(self, seen: Observation) -> PolicyScores:
        """All steps of the method."""
        inherited = seen.states if self.params.trajectory_state else [TrajectoryState()] * len(seen.states)
        scored = score_batch(
            seen.attended,
            seen.layouts,
            seen.kv_indptr,
            seen.frame_offsets,
            seen.frame_norms,
            inherited,
            self.params.scorer,
            ops=seen.ops,
        )
        return PolicyScores(scored.calibrated, scored.layer_mean, scored.states)
