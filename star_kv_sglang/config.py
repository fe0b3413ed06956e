"""The policy's configuration: what the flags say, validated once, the same object in every process."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from star_kv_sglang.errors import ConfigError
from star_kv_sglang.introspection.protocol import MODES, OFF
from star_kv_sglang.limits import COUNT, NOT_NEGATIVE, POSITIVE_SHARE, SHARE, SHARE_BELOW_ONE, field_problems, limited
from star_kv_sglang.policies import REFUSED, policy_class, policy_keys, policy_names, policy_params
from star_kv_sglang.policies.base.params import PolicyParams

FULL = "full"
WINDOW = "window"
"""The policy that prunes nothing but what lies outside of a window over the screenshots."""
POLICIES = (FULL, *policy_names())
SPLITS = ("score", "size")
NO_MERGE = "none"
MERGES = (NO_MERGE, "averaged", "pivotal", "weighted")
DEFAULT_BUDGET = 0.2
NEVER, ASKED, ALL = RECOGNISES = ("off", "asked", "all")
"""Whether prompts that leave screenshots out are recognised: none, those that ask for it, all but those that refuse."""
IMAGE_WINDOW_MEANING = "the newest screenshots of a branch that its window holds; leave it out to hold all"


@dataclass(frozen=True)
class PolicyConfig:
    """A KV policy and its parameters.

    Attributes:
        policy: Name of the policy; ``full`` is stock SGLang.
        budget: Share of a branch's private visual tokens that stay after a prefill, in (0, 1]. Text is always kept.
        params: The policy's own parameters; None for its defaults, so that torch is not imported to read flags.
        frame_floor: Least share of each screenshot that stays, in [0, 1), where screenshots compete by score.
        frame_split: How screenshots share the budget: "score" (their tokens compete), "size" (each keeps the same
            share), or None for the policy's own way.
        merge: What becomes of the pairs of keys and values that are dropped: "averaged", "pivotal" or "weighted" (each
            is merged into the kept one of its screenshot with the nearest key), "none" (they are gone), or None for
            the policy's own way.
        token_budget: Most slots that the private nodes of all branches hold together, or None; then ``budget`` is 1.
        branch_floor: Least share of each branch's screenshots that stays where branches compete, in [0, 1).
        current_last: Where branches compete, the newest screenshot of a running branch is cut only when the rest does
            not suffice; otherwise it competes as all others do.
        recency_weight: How often a branch's scores are halved, where branches compete, for every round of the others
            in which it was silent, 0 or more.
        pinned_share: Most of the pool that all prefixes which requests ask to keep whole may hold together, in [0, 1].
        shrink_before_evict: When the pool runs short, prune what no request holds before whole leaves are dropped.
        image_window: How many of a branch's newest screenshots its window holds, or None for all; private ones before
            them keep ``window_rest``.
        window_rest: Share of the private screenshots outside of the window, all together, that stays, in [0, 1).
        recognise_windows: Which prompts that leave screenshots out are served from the branch that has them: "off" for
            none, "asked" for those that ask for it, "all" for all but those that refuse.
        window_placeholder: The text that clients send in the place of a screenshot which they leave out, or None.
        trace_dir: Folder that receives one ``.npz`` file for each pruned segment, or None.
        introspection: What the server shows of its tree: "off", "tree", or "content", with what clients sent.
    """

    policy: str = FULL
    budget: float = DEFAULT_BUDGET
    params: PolicyParams | None = None
    frame_floor: float = limited(0.02, SHARE_BELOW_ONE)
    frame_split: str | None = None
    merge: str | None = None
    token_budget: int | None = None
    branch_floor: float = limited(0.0, SHARE_BELOW_ONE)
    current_last: bool = True
    recency_weight: float = limited(0.0, NOT_NEGATIVE)
    pinned_share: float = limited(0.25, SHARE)
    shrink_before_evict: bool = True
    image_window: int | None = None
    window_rest: float = limited(0.0, SHARE_BELOW_ONE)
    recognise_windows: str = NEVER
    window_placeholder: str | None = None
    trace_dir: str | None = None
    introspection: str = OFF

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
        yield from POSITIVE_SHARE.problems(
            "--kv-budget",
            self.budget,
            "the share of a branch's private screenshot tokens to keep; use 1.0 to keep everything",
        )
        if self.token_budget is not None:
            yield from COUNT.problems(
                "--kv-token-budget",
                self.token_budget,
                "the tokens that the private nodes of all branches may hold together",
            )
        if self.image_window is not None:
            yield from COUNT.problems("--kv-image-window", self.image_window, IMAGE_WINDOW_MEANING)
        yield from self._problems_of_recognition()
        yield from field_problems(self)
        if self.frame_split is not None and self.frame_split not in SPLITS:
            yield f"frame_split {self.frame_split!r} must be one of {', '.join(SPLITS)}"
        if self.merge is not None and self.merge not in MERGES:
            yield f"merge {self.merge!r} must be one of {', '.join(MERGES)}"
        if self.trace_dir is not None and not isinstance(self.trace_dir, str):
            yield f"trace_dir {self.trace_dir!r} must be the path of a folder"
        if self.introspection not in MODES:
            yield f"--kv-introspection {self.introspection!r} must be one of {', '.join(MODES)}"

    def _problems_of_recognition(self) -> Iterator[str]:
        if self.recognise_windows not in RECOGNISES:
            yield f"--kv-recognise-windows {self.recognise_windows!r} must be one of {', '.join(RECOGNISES)}"
        elif self.recognise_windows != NEVER and not self.prunes:
            yield (
                f"--kv-recognise-windows {self.recognise_windows} needs a policy that prunes, as what is left out is "
                "to go; use --kv-policy window, or a budget below 1"
            )
        if self.window_placeholder is not None and self.recognise_windows == NEVER:
            yield "--kv-window-placeholder is read where windows are recognised; add --kv-recognise-windows all"
        if self.window_placeholder is not None and not self.window_placeholder.strip():
            yield f"--kv-window-placeholder {self.window_placeholder!r} must be a text"

    def chosen_params(self) -> PolicyParams:
        """The policy's parameters, its defaults where nobody chose; imports the policy."""
        return policy_params(self.policy, {}) if self.params is None else self.params

    @property
    def needs_one_rank(self) -> bool:
        """Whether the policy cannot be divided among tensor parallel ranks; imports the policy.

        What is dropped is merged into what is nearest over all key heads of a layer.
        """
        return policy_class(self.policy).needs_one_rank or self.merges

    @property
    def merges(self) -> bool:
        """Whether what is dropped is merged into what is kept; imports the policy."""
        if not self.active:
            return False
        return policy_class(self.policy).merge is not None if self.merge is None else self.merge != NO_MERGE

    @property
    def active(self) -> bool:
        """Whether anything of SGLang changes."""
        return self.policy != FULL

    @property
    def prunes(self) -> bool:
        """Whether this configuration ever frees a token; with budget 1.0 nothing is observed and nothing changes."""
        if not self.active:
            return False
        # With the policy of the window a request may ask for one of its own.
        has_window = self.image_window is not None or self.policy == WINDOW
        return has_window or self.budget < 1 or self.token_budget is not None

    @property
    def prunes_again(self) -> bool:
        """Whether what was pruned once may be pruned again without a query."""
        shrinks = self.shrink_before_evict and self.policy != WINDOW
        return self.prunes and (self.token_budget is not None or shrinks)

    @classmethod
    def from_flags(
        cls,
        *,
        policy: str,
        budget: float | None,
        token_budget: int | None,
        observation_window: int | None,
        policy_config: str | None,
        image_window: int | None = None,
        recognise_windows: str = NEVER,
        window_placeholder: str | None = None,
        introspection: str = OFF,
    ) -> PolicyConfig:
        """Build the configuration from the command line's values.

        Raises:
            ConfigError: A value is out of range, unknown, or contradicts another.
        """
        others = (observation_window, policy_config, image_window, window_placeholder)
        _refuse_contradictions(policy, budget, token_budget, others, recognise_windows, introspection=introspection)
        extra = dict(read_mapping(policy_config)) if policy_config is not None else {}
        if observation_window is not None:
            if "observation_window" in extra:
                raise ConfigError(
                    "observation_window is given twice: by --kv-observation-window and --kv-policy-config"
                )
            extra["observation_window"] = observation_window
        shared = {name: extra.pop(name) for name in SHARED_KEYS if name in extra}
        clash = sorted(WITH_A_FLAG & set(extra))
        if clash:
            raise ConfigError(f"--kv-policy-config must not hold {', '.join(clash)}: use the flag of that name")
        params, problems = None, []
        if extra and policy in POLICIES:
            try:
                params = _own_params(policy, extra)
            except ConfigError as error:
                problems.append(str(error))
        try:
            made = cls(
                policy=policy,
                budget=_default_budget(policy, token_budget) if budget is None else budget,
                token_budget=token_budget,
                image_window=image_window,
                recognise_windows=recognise_windows,
                window_placeholder=window_placeholder,
                params=params,
                introspection=introspection,
                **shared,
            )
        except ConfigError as error:
            problems.insert(0, str(error))
        if problems:
            raise ConfigError("\n".join(problems))
        return made


WITH_A_FLAG = {"budget", "token_budget", "image_window", "recognise_windows", "window_placeholder"}
SHARED_KEYS = tuple(
    sorted({field.name for field in fields(PolicyConfig)} - WITH_A_FLAG - {"policy", "params", "introspection"})
)
"""What ``--kv-policy-config`` takes with every policy."""


def _refuse_contradictions(
    policy: str,
    budget: float | None,
    token_budget: int | None,
    others: tuple[object, ...],
    recognise_windows: str,
    *,
    introspection: str,
) -> None:
    if budget is not None and token_budget is not None:
        raise ConfigError("--kv-budget and --kv-token-budget are two ways to bound the same memory: give one of them")
    given = any(value is not None for value in (budget, token_budget, *others))
    if policy == FULL and (given or recognise_windows != NEVER):
        raise ConfigError(
            "--kv-budget, --kv-token-budget, --kv-image-window, --kv-recognise-windows, --kv-window-placeholder, "
            "--kv-observation-window and --kv-policy-config need a policy that prunes; add --kv-policy star or drop "
            "them"
        )
    if policy == FULL and introspection != OFF:
        raise ConfigError(
            f"--kv-introspection {introspection} shows a policy's tree, and --kv-policy {FULL} has none; add "
            "--kv-policy star, or drop it"
        )


def _default_budget(policy: str, token_budget: int | None) -> float:
    return DEFAULT_BUDGET if token_budget is None and policy != WINDOW else 1.0


def _own_params(policy: str, values: Mapping[str, Any]) -> PolicyParams:
    if "observation_window" in values and "observation_window" not in policy_keys(policy):
        raise ConfigError(f"{policy} has no observation window to set; drop --kv-observation-window")
    try:
        return policy_params(policy, values)
    except ConfigError as error:
        raise ConfigError(f"--kv-policy-config: {error}; every policy takes {', '.join(SHARED_KEYS)}") from error


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
