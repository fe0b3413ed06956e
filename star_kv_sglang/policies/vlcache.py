"""VL-Cache (arXiv 2410.23317): attention of all queries behind the image.

Its layer budgets are left out: all layers of a request share one page table, so each holds equally many tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

from star_kv_sglang.policies.base.interface import KVPolicy, Observation, PolicyScores, Queries
from star_kv_sglang.policies.base.params import PoolParams
from star_kv_sglang.policies.base.steps import calibrate


@dataclass(frozen=True)
class Params(PoolParams):
    """All queries behind the newest screenshot observe: there is no window to set."""


class Policy(KVPolicy[Params]):
    """The text behind the newest screenshot decides, however long it is."""

    queries = Queries.AFTER_SCREENSHOT

    def score(self, seen: Observation) -> PolicyScores:
        """Mean over the heads."""
        return PolicyScores.of(calibrate(seen.attended.mean(dim=1), seen), seen)
