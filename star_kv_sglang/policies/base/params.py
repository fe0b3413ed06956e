"""Parameters that several policies have. Each policy's own ``Params`` is made of those that it uses."""

from __future__ import annotations

from dataclasses import dataclass, field

from star_kv_sglang.algorithm.params import ScorerParams
from star_kv_sglang.errors import ConfigError
from star_kv_sglang.limits import COUNT, POSITIVE_SHARE, SHARE, Limit, check_fields, limited, one_of

BESIDE_PEAK = 0.9
"""Share of its distance that a token beside a local maximum counts with, unless told otherwise."""

KEPT_BEFORE = 0.9
"""Share of its distance that a token counts with of which the screenshot before has kept a copy, likewise."""


KEEP, DROP, OFF = "keep", "drop", "off"
"""What is done with sinks: they stay, beside the budget; they go first; nobody looks for them."""

SINK_RATIO = 20.0
"""A sink's norm is more than this many times the usual one of its screenshot, unless told otherwise. Widgets of the
small models reach 7 behind the first layer. Massive activations are a thousand times the usual one of a channel and
more: at a few thousand channels ten times the usual norm at least, and mostly far more."""


@dataclass(frozen=True)
class PolicyParams:
    """Of a policy that has none; those of all others extend it, and are checked when they are made.

    Raises:
        ConfigError: A value is wrong.
    """

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class WindowParams(PolicyParams):
    """Of policies with an observation window.

    Attributes:
        observation_window: The last queries of a prompt; they score the past, where the policy looks at queries, and
            their own tokens are kept before all others.
    """

    observation_window: int = limited(8, COUNT)


@dataclass(frozen=True)
class PoolParams(PolicyParams):
    """Of policies that look at pooled attention.

    Attributes:
        pool_width: Width of the average pooling over tokens, odd.
    """

    pool_width: int = limited(5, COUNT)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pool_width % 2 == 0:
            raise ConfigError(f"pool_width {self.pool_width} must be odd")


@dataclass(frozen=True)
class PublishedParams(PolicyParams):
    """Of policies that score as STaR-KV does (arXiv 2606.01790); every parameter of its scorer is a key of theirs.

    Attributes:
        scorer: Parameters of the scorer.
    """

    scorer: ScorerParams = field(default_factory=ScorerParams)

    @property
    def observation_window(self) -> int:
        """The last queries of a prompt, which score the past."""
        return self.scorer.observation_window

    @property
    def pool_width(self) -> int:
        """Width of the average pooling over tokens, odd."""
        return self.scorer.pool_width


@dataclass(frozen=True)
class DistinctnessParams(PolicyParams):
    """Of policies that rank a screenshot's tokens by how much they stand out.

    Attributes:
        peaks: Local maxima on the screen matter.
        beside_peak: Share of its distance that a token beside a local maximum counts with, in [0, 1]; at 0 all local
            maxima come before all other tokens.
        kept_before: Share of its distance that a token counts with where the screenshot before has kept the same thing
            at the same place, in (0, 1].
        sinks: What becomes of at most four tokens a screenshot whose layer input is far larger than the others':
            "keep" beside the budget, "drop" before all others, or "off": nobody looks for them.
        sink_ratio: How many times the screenshot's median a layer input's norm must be for that, above 1.
    """

    peaks: bool = True
    beside_peak: float = limited(BESIDE_PEAK, SHARE)
    kept_before: float = limited(KEPT_BEFORE, POSITIVE_SHARE)
    sinks: str = one_of(KEEP, (KEEP, DROP, OFF))
    sink_ratio: float = limited(SINK_RATIO, Limit(1, with_low=False))
