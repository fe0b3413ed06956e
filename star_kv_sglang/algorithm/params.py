"""Parameters of the scorer: one frozen, validated dataclass."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, get_type_hints

if TYPE_CHECKING:
    from collections.abc import Mapping

GRIDS = ("true", "square")
PATTERN_DTYPES = ("float16", "float32")


@dataclass(frozen=True)
class ScorerParams:
    """Parameters of the method, STaR-KV (arXiv 2606.01790); the defaults are the paper's.

    Attributes:
        observation_window: The last queries of a prompt that score the past.
        pool_width: Width of the average pooling over tokens, odd.
        boost: Spatial boost of tokens that stand out on the current screenshot.
        boost_alpha: Weight of the boost.
        boost_temperature: Temperature of its softmax over the screenshot's tokens.
        prior: The mutual-information prior, the first axis: key heads that tell more of the place count more.
        subspaces: Key heads are told apart; false: each has the mean of all, so that the prior says nothing.
        prior_lambda: Weight of the mutual-information prior once the ramp is over.
        prior_warmup_steps: New screenshots before which the prior has no weight.
        prior_ramp_steps: New screenshots behind these over which its weight grows linearly to `prior_lambda`.
        prior_ema: Decay of the running mutual information.
        prior_tau: Temperature of the prior's softmax over the groups.
        temporal: The temporal discount, the second axis: of earlier screenshots, and of what they have kept already.
        discount_delta: Decay for each screenshot that came after, of a group whose pattern is stable.
        discount_rho: Decay of the running pattern.
        discount_eps: Share of that decay which a group has whatever its stability.
        discount_floor: Least factor that a discount leaves.
        temperature: The entropy temperature, the third axis: scores are raised to a power that follows from their
            entropy.
        temperature_min: Its least value.
        temperature_max: Its largest value.
        temperature_smoothing: Share of the branch's last temperature in the new one.
        grid: "true" bins positions on the screenshot's own grid, "square" on round(sqrt(V)) rows as the published code
            does.
        pattern_dtype: How a branch stores its running pattern; float16 halves the memory of the state.
    """

    observation_window: int = 8
    pool_width: int = 5
    boost: bool = True
    boost_alpha: float = 2.0
    boost_temperature: float = 3.5
    prior: bool = True
    subspaces: bool = True
    prior_lambda: float = 0.5
    prior_warmup_steps: int = 5
    prior_ramp_steps: int = 10
    prior_ema: float = 0.9
    prior_tau: float = 1.0
    temporal: bool = True
    discount_delta: float = 0.1
    discount_rho: float = 0.9
    discount_eps: float = 0.0
    discount_floor: float = 0.0
    temperature: bool = True
    temperature_min: float = 0.75
    temperature_max: float = 1.25
    temperature_smoothing: float = 0.0
    grid: str = "true"
    pattern_dtype: str = "float16"

    def __post_init__(self) -> None:
        problems = [*self._type_problems()]
        if not problems:
            problems = [*self._range_problems()]
        if problems:
            raise ValueError("invalid scorer parameters:\n" + "\n".join(f"- {problem}" for problem in problems))

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> ScorerParams:
        """Build from JSON-like values; raises ValueError that lists every unknown key and every bad value."""
        known = [field.name for field in fields(cls)]
        unknown = sorted(set(values) - set(known))
        if unknown:
            raise ValueError(f"unknown scorer parameter {', '.join(unknown)}; known are: {', '.join(known)}")
        return cls(**values)

    def prior_weight(self, step: int) -> float:
        """Weight of the prior at a step; steps count from 1."""
        past_warmup = step - self.prior_warmup_steps
        if not self.prior or past_warmup <= 0:
            return 0.0
        return self.prior_lambda * min(1.0, past_warmup / self.prior_ramp_steps)

    def _type_problems(self) -> list[str]:
        hints = get_type_hints(type(self))
        problems = []
        for field in fields(self):
            value, wanted = getattr(self, field.name), hints[field.name]
            accepted: tuple[type, ...] = (int, float) if wanted is float else (wanted,)
            if not isinstance(value, accepted) or (isinstance(value, bool) and wanted is not bool):
                problems.append(f"{field.name} is {value!r}, expected {wanted.__name__}")
            elif isinstance(value, float) and not math.isfinite(value):
                problems.append(f"{field.name} is {value}, expected a finite number")
        return problems

    def _range_problems(self) -> list[str]:
        rules = {
            "observation_window must be at least 1": self.observation_window >= 1,
            "pool_width must be odd and at least 1": self.pool_width >= 1 and self.pool_width % 2 == 1,
            "boost_alpha must not be negative": self.boost_alpha >= 0,
            "boost_temperature must be above 0": self.boost_temperature > 0,
            "prior_lambda must be within 0..1": 0 <= self.prior_lambda <= 1,
            "prior_warmup_steps must not be negative": self.prior_warmup_steps >= 0,
            "prior_ramp_steps must be at least 1": self.prior_ramp_steps >= 1,
            "prior_ema must be within 0..1": 0 <= self.prior_ema <= 1,
            "prior_tau must be above 0": self.prior_tau > 0,
            "discount_delta must not be negative": self.discount_delta >= 0,
            "discount_rho must be within 0..1": 0 <= self.discount_rho <= 1,
            "discount_eps must be within 0..1": 0 <= self.discount_eps <= 1,
            "discount_floor must be within 0..1": 0 <= self.discount_floor <= 1,
            "temperature_min must be above 0": self.temperature_min > 0,
            "temperature_max must be at least temperature_min": self.temperature_max >= self.temperature_min,
            "temperature_smoothing must be at least 0 and below 1": 0 <= self.temperature_smoothing < 1,
            f"grid must be one of {', '.join(GRIDS)}": self.grid in GRIDS,
            f"pattern_dtype must be one of {', '.join(PATTERN_DTYPES)}": self.pattern_dtype in PATTERN_DTYPES,
        }
        return [rule for rule, holds in rules.items() if not holds]
