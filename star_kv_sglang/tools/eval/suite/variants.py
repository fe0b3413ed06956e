"""What is compared: policies, their ablations, budgets and protocols, and in which order."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from star_kv_sglang.tools.eval.errors import EvalError
from star_kv_sglang.tools.eval.runner import Protocol
from star_kv_sglang.tools.measuring import POLICY_CONFIG

FULL: Final = "full"
REFERENCE: Final = "star"
POLICIES: Final = (
    FULL,
    "star",
    "random",
    "star-paper",
    "distinct",
    "snapkv",
    "streaming",
    "h2o",
    "vlcache",
    "guikv",
    "stlite",
    "fastgen",
    "lookm",
)
"""In the order in which they are started: a run that is cut short has the first of them."""
BUDGETS: Final = (0.2, 0.1, 0.05, 0.4, 0.03)
"""In the order in which they are asked."""
ABLATED_BUDGETS: Final = 3
"""How many of the budgets an ablation gets."""
PROTOCOLS: Final = (Protocol.PERSISTENT, Protocol.STATELESS)


@dataclass(frozen=True)
class Variant:
    """One engine: a policy with its settings.

    Attributes:
        name: names it in files and tables.
        policy: as ``--kv-policy``.
        config: as ``--kv-policy-config``.
        of: the policy whose part is changed, for an ablation; None for a policy as it is.
        what: what is changed, in words.
    """

    name: str
    policy: str
    config: dict[str, Any] = field(default_factory=dict)
    of: str | None = None
    what: str = ""

    @property
    def prunes(self) -> bool:
        """Whether a budget means anything."""
        return self.policy != FULL


@dataclass(frozen=True)
class Cell:
    """A row of results: a variant at a budget under a protocol."""

    variant: str
    budget: float
    protocol: Protocol

    @property
    def name(self) -> str:
        """For files."""
        return f"{self.variant}-{100 * self.budget:g}-{self.protocol.value}"


def _ablation(of: str, name: str, what: str, **config: Any) -> Variant:
    return Variant(f"{of}.{name}", of, config, of, what)


_EARLY: Final = {"prior_warmup_steps": 0, "prior_ramp_steps": 1}
"""The prior has all of its weight from the first screenshot on: the suite's trajectories end before its ramp does."""

ABLATIONS: Final = (
    _ablation("star", "no-prior", "less the subspace prior", prior=False),
    _ablation("star", "no-temporal", "less the temporal discount", temporal=False),
    _ablation("star", "no-temperature", "less the entropy temperature", temperature=False),
    _ablation("star", "no-axes", "less all three axes", prior=False, temporal=False, temperature=False),
    _ablation("star", "share0", "less the window's saliency: the question has no say", question_share=0.0),
    _ablation("star", "share100", "less the distinct saliency: the question chooses all", question_share=1.0),
    _ablation("star", "group-mean", "groups replaced by their mean", subspaces=False),
    _ablation("star", "early-prior", "the prior from the first screen on", **_EARLY),
    _ablation(
        "star", "early-prior-group-mean", "the same with groups replaced by their mean", subspaces=False, **_EARLY
    ),
    _ablation("star", "share50", "the question chooses half of every prompt's", question_share=0.5),
    _ablation("star", "equal-shares", "the question's part competes for nothing", question_competes=0.0),
    _ablation("star", "no-peaks", "tokens beside local maxima count in full", peaks=False),
    _ablation("star", "kept-again", "what the screenshot before has kept counts in full", kept_before=1.0),
    _ablation("star", "by-score", "screenshots compete by score", frame_split="score"),
    _ablation("star-paper", "no-boost", "no spatial boost", boost=False),
    _ablation("star-paper", "no-discount", "no temporal discount", temporal=False),
    _ablation("star-paper", "no-temperature", "no entropy temperature", temperature=False),
    _ablation("star-paper", "no-prior", "no mutual-information prior", prior=False),
    _ablation("star-paper", "group-mean", "groups replaced by their mean", subspaces=False),
    _ablation("star-paper", "early-prior", "the prior from the first screen on", **_EARLY),
    _ablation("star-paper", "early-prior-square", "the same on a guessed square grid", grid="square", **_EARLY),
    _ablation("star-paper", "reset", "no trajectory state", trajectory_state=False),
    _ablation("star-paper", "by-size", "every screenshot keeps the same share", frame_split="size"),
    _ablation("star-paper", "window3", "the last 3 queries observe: the template's tail", observation_window=3),
    _ablation("star-paper", "window16", "the last 16 queries observe", observation_window=16),
)


def chosen_variants(names: Sequence[str]) -> list[Variant]:
    """Variants by name, in the order given.

    Raises:
        EvalError: there is no such variant.
    """
    known = {name: Variant(name, name) for name in POLICIES} | {variant.name: variant for variant in ABLATIONS}
    unknown = sorted(set(names) - set(known))
    if unknown:
        raise EvalError(f"there is no variant {', '.join(unknown)}; known are {', '.join(known)}")
    return [known[name] for name in dict.fromkeys(names)]


def cells_of(variant: Variant, budgets: Sequence[float], protocols: Sequence[Protocol]) -> list[Cell]:
    """A variant's cells in the order in which they are asked.

    The full cache has one for each protocol, an ablation the first `ABLATED_BUDGETS` of them.
    """
    used = budgets if variant.of is None else budgets[:ABLATED_BUDGETS]
    used = used if variant.prunes else (1.0,)
    return [Cell(variant.name, budget, protocol) for budget in used for protocol in protocols]


def engine_arguments(variant: Variant, trace_dir: str) -> dict[str, Any]:
    """Keyword arguments for the engine. The budget is sent with each request."""
    if not variant.prunes:
        return {"kv_policy": FULL}
    config = {**POLICY_CONFIG, **variant.config, "trace_dir": trace_dir}
    return {"kv_policy": variant.policy, "kv_budget": 0.5, "kv_policy_config": json.dumps(config)}
