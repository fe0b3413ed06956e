"""SnapKV (arXiv 2404.14469): pooled window attention, every key head keeps its own best tokens."""

from __future__ import annotations

from dataclasses import dataclass

from star_kv_sglang.policies.base.interface import KVPolicy, Observation, PolicyScores
from star_kv_sglang.policies.base.params import PoolParams, WindowParams
from star_kv_sglang.policies.base.steps import calibrate


@dataclass(frozen=True)
class Params(WindowParams, PoolParams):
    """Of the window's attention."""


class Policy(KVPolicy[Params]):
    """Slot j then holds another token in every head of every layer; the page table does not notice."""

    per_head = True
    needs_one_rank = True

    def score(self, seen: Observation) -> PolicyScores:
        """Attention of the window, head by head."""
        return PolicyScores.of(calibrate(seen.attended.flatten(0, 1), seen), seen)
