"""The policy's configuration: what the flags say, validated once, the same object in every process."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from star_kv_sglang.algorithm.params import ScorerParams
from star_kv_sglang.errors import ConfigError
from star_kv_sglang.policies import REFUSED, policy_names
from star_kv_sglang.policies.base.settings import BESIDE_PEAK, KEPT_BEFORE, PolicySettings

FULL = "full"
POLICIES = (FULL, *policy_names())
SPLITS = ("score", "size")
OWN_KEYS = (
    "beside_peak",
    "branch_floor",
    "current_last",
    "frame_floor",
    "frame_split",
    "kept_before",
    "peaks",
    "pinned_share",
    "question_share",
    "recency_weight",
    "seed",
    "shrink_before_evict",
    "trace_dir",
    "trajectory_state",
)
DEFAULT_BUDGET = 0.2


@dataclass(frozen=True)
class PolicyConfig:
    """A KV policy and its parameters.

    Attributes:
        policy: Name of the policy; ``full`` is stock SGLang.
        budget: Share of a branch's private visual tokens that stay after a prefill, in (0, 1]. Text is always kept.
        scorer: Parameters of the scorer (STaR-KV, arXiv 2606.01790).
        frame_floor: Least share of each screenshot that stays, in [0, 1), where screenshots compete by score.
        frame_split: How screenshots share the budget: "score" (their tokens compete), "size" (each keeps the same
            share), or None for the policy's own way.
        token_budget: Most slots that the private nodes of all branches hold together, or None; then ``budget`` is 1.
        branch_floor: Least share of each branch's screenshots that stays where branches compete, in [0, 1).
        current_last: Where branches compete, the newest screenshot of a running branch is cut only when the rest does
            not suffice; otherwise it competes as all others do.
        recency_weight: How often a branch's scores are halved, where branches compete, for every round of the others
            in which it was silent, 0 or more.
        pinned_share: Most of the pool that all prefixes which requests ask to keep whole may hold together, in [0, 1].
        shrink_before_evict: When the pool runs short, prune what no request holds before whole leaves are dropped.
        seed: Of policies that draw.
        question_share: Share of what stays that the question chooses, in [0, 1], where a policy has two scores; None
            for the policy's own rule.
        peaks: Where tokens are ranked by how much they stand out, local maxima on the screen matter.
        beside_peak: Share of its distance that a token beside a local maximum counts with, in [0, 1]; at 0 all local
            maxima come before all other tokens.
        kept_before: Share of its distance that a token counts with where the screenshot before has kept the same thing
            at the same place, in (0, 1].
        trajectory_state: Scores build on what earlier prompts of the branch left behind.
        trace_dir: Folder that receives one ``.npz`` file for each pruned segment, or None.
    """

    policy: str = FULL
    budget: float = DEFAULT_BUDGET
    scorer: ScorerParams = field(default_factory=ScorerParams)
    frame_floor: float = 0.02
    frame_split: str | None = None
    token_budget: int | None = None
    branch_floor: float = 0.0
    current_last: bool = True
    recency_weight: float = 0.0
    pinned_share: float = 0.25
    shrink_before_evict: bool = True
    seed: int = 0
    question_share: float | None = None
    peaks: bool = True
    trajectory_state: bool = True
    beside_peak: float = BESIDE_PEAK
    kept_before: float = KEPT_BEFORE
    trace_dir: str | None = None

    def __post_init__(self) -> None:
        problems = [*self._problems()]
        if problems:
            raise ConfigError("\n".join(problems))

    def _problems(self) -> Iterator[str]:
        """What is wrong with these values, all of it, so that a user mends it in one go."""
        try:
            require_policy(self.policy)
        except ConfigError as error:
            yield str(error)
        if not _is_number(self.budget) or not 0 < self.budget <= 1:
            yield (
                f"--kv-budget {self.budget!r} must be a number in (0, 1]: the share of a branch's private "
                "screenshot tokens to keep; use 1.0 to keep everything"
            )
        if self.token_budget is not None and (not _is_whole(self.token_budget) or self.token_budget < 1):
            yield (
                f"--kv-token-budget {self.token_budget!r} must be a whole number, 1 or more: the tokens that the "
                "private nodes of all branches may hold together"
            )
        for name in ("frame_floor", "branch_floor"):
            value = getattr(self, name)
            if not _is_number(value) or not 0 <= value < 1:
                yield f"{name} {value!r} must be a number in [0, 1)"
        if not _is_number(self.recency_weight) or not 0 <= self.recency_weight < math.inf:
            yield f"recency_weight {self.recency_weight!r} must be a number, 0 or more"
        if self.frame_split is not None and self.frame_split not in SPLITS:
            yield f"frame_split {self.frame_split!r} must be one of {', '.join(SPLITS)}"
        if not _is_whole(self.seed) or self.seed < 0:
            yield f"seed {self.seed!r} must be a whole number, 0 or more"
        shares = {"beside_peak": self.beside_peak, "pinned_share": self.pinned_share}
        if self.question_share is not None:
            shares["question_share"] = self.question_share
        for name, share in shares.items():
            if not _is_number(share) or not 0 <= share <= 1:
                yield f"{name} {share!r} must be a number in [0, 1]"
        if not _is_number(self.kept_before) or not 0 < self.kept_before <= 1:
            yield f"kept_before {self.kept_before!r} must be a number in (0, 1]"
        for name in ("current_last", "peaks", "shrink_before_evict", "trajectory_state"):
            if not isinstance(getattr(self, name), bool):
                yield f"{name} {getattr(self, name)!r} must be true or false"
        if self.trace_dir is not None and not isinstance(self.trace_dir, str):
            yield f"trace_dir {self.trace_dir!r} must be the path of a folder"

    @property
    def settings(self) -> PolicySettings:
        """What a policy is told."""
        return PolicySettings(
            scorer=self.scorer,
            seed=self.seed,
            question_share=self.question_share,
            peaks=self.peaks,
            trajectory_state=self.trajectory_state,
            beside_peak=self.beside_peak,
            kept_before=self.kept_before,
        )

    @property
    def active(self) -> bool:
        """Whether anything of SGLang changes."""
        return self.policy != FULL

    @property
    def prunes(self) -> bool:
        """Whether this configuration ever frees a token; with budget 1.0 nothing is observed and nothing changes."""
        return self.active and (self.budget < 1 or self.token_budget is not None)

    @property
    def prunes_again(self) -> bool:
        """Whether what was pruned once may be pruned again without a query."""
        return self.prunes and (self.token_budget is not None or self.shrink_before_evict)

    @classmethod
    def from_flags(
        cls,
        *,
        policy: str,
        budget: float | None,
        token_budget: int | None,
        observation_window: int | None,
        policy_config: str | None,
    ) -> PolicyConfig:
        """Build the configuration from the command line's values.

        Raises:
            ConfigError: A value is out of range, unknown, or contradicts another.
        """
        if budget is not None and token_budget is not None:
            raise ConfigError(
                "--kv-budget and --kv-token-budget are two ways to bound the same memory: give one of them"
            )
        given = (budget, token_budget, observation_window, policy_config)
        if policy == FULL and any(value is not None for value in given):
            raise ConfigError(
                "--kv-budget, --kv-token-budget, --kv-observation-window and --kv-policy-config need a policy that "
                "prunes; add --kv-policy star or drop them"
            )
        extra = dict(read_mapping(policy_config)) if policy_config is not None else {}
        if observation_window is not None:
            if "observation_window" in extra:
                raise ConfigError(
                    "observation_window is given twice: by --kv-observation-window and --kv-policy-config"
                )
            extra["observation_window"] = observation_window
        own = {name: extra.pop(name) for name in OWN_KEYS if name in extra}
        known_here = [f.name for f in fields(cls) if f.name not in ("policy", "scorer")]
        clash = sorted(set(extra) & set(known_here))
        if clash:
            raise ConfigError(f"--kv-policy-config must not hold {', '.join(clash)}: use the flag of that name")
        try:
            scorer = ScorerParams.from_mapping(extra)
        except (TypeError, ValueError) as error:
            raise ConfigError(
                f"--kv-policy-config: {error}; besides the scorer's keys it takes {', '.join(OWN_KEYS)}"
            ) from error
        default = DEFAULT_BUDGET if token_budget is None else 1.0
        return cls(
            policy=policy,
            budget=default if budget is None else budget,
            token_budget=token_budget,
            scorer=scorer,
            **own,
        )


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def require_policy(name: str) -> None:
    """Check that a policy can be chosen.

    Raises:
        ConfigError: It cannot; the message says why.
    """
    if name in REFUSED:
        raise ConfigError(f"--kv-policy {name} is not offered: {REFUSED[name]}")
    if name not in POLICIES:
        raise ConfigError(f"--kv-policy {name!r} does not exist; choose one of {', '.join(POLICIES)}")


def read_mapping(text_or_path: str) -> Mapping[str, Any]:
    """Read a JSON object given as text or as the path of a file.

    Raises:
        ConfigError: Neither JSON nor a readable file, or not an object.
    """
    text = text_or_path
    if not text_or_path.lstrip().startswith("{"):
        try:
            text = Path(text_or_path).read_text(encoding="utf-8")
        except OSError as error:
            raise ConfigError(
                f"--kv-policy-config {text_or_path!r} is neither a JSON object nor a readable file: {error}"
            ) from error
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"--kv-policy-config is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise ConfigError(f"--kv-policy-config must be a JSON object, got {type(value).__name__}")
    return value
