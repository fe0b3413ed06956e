"""What a user chooses of a policy. No torch here: flags are read before it is imported."""

from __future__ import annotations

from dataclasses import dataclass, field

from star_kv_sglang.algorithm.params import ScorerParams

BESIDE_PEAK = 0.9
"""Share of its distance that a token beside a local maximum counts with, unless told otherwise."""

KEPT_BEFORE = 0.9
"""Share of its distance that a token counts with of which the screenshot before has kept a copy, likewise."""


@dataclass(frozen=True)
class PolicySettings:
    """What the user chose.

    Attributes:
        scorer: Parameters; a policy reads those that it has a use for.
        seed: Of policies that draw.
        question_share: Share of what stays that the question chooses, where a policy has two scores; None for the
            policy's own rule.
        peaks: Where tokens are ranked by how much they stand out, local maxima on the screen matter.
        beside_peak: What the distance of a token beside a local maximum is multiplied by; at 0 all local maxima come
            before all other tokens.
        kept_before: What the distance of a token is multiplied by where the screenshot before has kept the same thing
            at the same place.
        trajectory_state: Scores build on what earlier prompts of the branch left behind.
    """

    scorer: ScorerParams = field(default_factory=ScorerParams)
    seed: int = 0
    question_share: float | None = None
    peaks: bool = True
    trajectory_state: bool = True
    beside_peak: float = BESIDE_PEAK
    kept_before: float = KEPT_BEFORE
