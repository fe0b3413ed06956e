"""LOOK-M (arXiv 2406.18139): text first, and what is dropped of the screenshots is merged into what is kept.

The paper accumulates the attention of the prompt's queries, as H2O does, puts text before all visual tokens, and merges
each evicted pair into the kept one whose key is most similar: *averaged* (a mean of all that come together), *pivotal*
(of the kept one and, for each evicted one, their midpoint; the default here), or *weighted* (each evicted one times the
similarity). Only abstract and summaries could be read for this file; the formulas are those of `engine/merging.py`.
Here:

- Text always stays, whatever the policy, and all queries that were ever prefilled count, over turns and chunks.
- Pairs are merged within their screenshot, never into text or into what other branches use, and all heads of a layer
  together.
- Merging is the engine's, a step of the compaction: ``merge`` in ``--kv-policy-config`` asks for it with any policy.
"""

from __future__ import annotations

from dataclasses import dataclass

from star_kv_sglang.policies import h2o
from star_kv_sglang.policies.base.interface import Merge
from star_kv_sglang.policies.base.params import WindowParams


@dataclass(frozen=True)
class Params(WindowParams):
    """The window's tokens are kept before all others."""


class Policy(h2o.Policy):
    """The most attended visual tokens, with the others merged into them."""

    merge = Merge.PIVOTAL
