"""A window over the screenshots: those that it holds stay whole unless a budget is given, private ones before them go.

What GUI agents do that keep the last N screenshots in their prompts, without what it costs them: the prefix stays.
``--kv-image-window``, or a request's ``kv_image_window``, says how many; without either nothing is pruned. Where a rest
of a screenshot stays, or a budget for the tree is to be held, the most recent tokens do.
"""

from __future__ import annotations

from dataclasses import dataclass

from star_kv_sglang.policies import streaming
from star_kv_sglang.policies.base.interface import Split
from star_kv_sglang.policies.base.params import WindowParams


@dataclass(frozen=True)
class Params(WindowParams):
    """The observation window's tokens are kept before all others."""


class Policy(streaming.Policy):
    """The later, the better; each screenshot by itself."""

    split = Split.BY_SIZE
