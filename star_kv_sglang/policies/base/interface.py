"""What a policy is given after a prefill, and what it returns.

A policy only scores. How many tokens stay (`Split`), which ones (the best), and how they move is the engine's, the same
for all. Layouts are those of ``triton_ops/LAYOUT.md``: L layers, G key heads, R requests, N live tokens of the batch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

import torch

from star_kv_sglang.algorithm.layout import PromptLayout
from star_kv_sglang.algorithm.state import TrajectoryState
from star_kv_sglang.policies.base.params import KEEP, OFF, SINK_RATIO, PolicyParams

if TYPE_CHECKING:
    from star_kv_sglang.triton_ops.dispatch import Ops


P = TypeVar("P", bound=PolicyParams)


class Queries(Enum):
    """Whose attention a policy wants to see."""

    NONE = "none"
    """Nobody's; nothing is computed."""
    WINDOW = "window"
    """The prompt's last queries, `KVPolicy.observation_window` of them."""
    AFTER_SCREENSHOT = "after screenshot"
    """All of the prompt's queries behind its last screenshot, as far as this prefill computes them."""
    ALL = "all"
    """Every query that was ever prefilled, added up: as much work as the attention itself, and one number per slot and
    layer."""


class Norms(Enum):
    """What is recorded of each visual token's layer input (after the input norm), while the layer runs."""

    NONE = "none"
    """Nothing."""
    INPUT = "input"
    """Its L2 norm."""
    CENTRED = "centred"
    """Its L2 distance to the mean of the screenshot's tokens, of those that the same forward pass computes and that are
    no sinks. Of sinks, where the policy looks for them, `Observation.sinks` tells instead."""


class Split(Enum):
    """How a request's budget is divided among its screenshots."""

    BY_SCORE = "score"
    """All tokens compete by their mean score over the layers."""
    BY_SIZE = "size"
    """Each screenshot gets the same share of its tokens."""


class Merge(Enum):
    """What becomes of pairs that are dropped: they are merged into the nearest kept one of their screenshot."""

    AVERAGED = "averaged"
    """The mean of the kept pair and of all that are merged into it."""
    PIVOTAL = "pivotal"
    """The same, of the midpoints of each with the kept one."""
    WEIGHTED = "weighted"
    """The same, each times the cosine of its key and the kept one's."""


def _same(values: torch.Tensor) -> torch.Tensor:
    """What one rank alone has is what there is."""
    return values


@dataclass(frozen=True)
class Observation:
    """A prefill batch after its forward pass.

    Attributes:
        layouts: One per request.
        states: The trajectory state that each request inherits.
        budgets: Share of its private visual tokens that each request may keep.
        kv_indptr: int32 [R + 1].
        slots: int64 [N], slot of each live token.
        keys, values: One pool [num_slots, G, D] for each layer; rotary applied to keys. With tensor parallelism a rank
            has only some key heads in them, while ``attention`` has all.
        frame_offsets: integer [U, N], raster index of each token in its screenshot; U is L, or L * G per head.
        frame_norms: float32 [L, N], what the policy's `Norms` say of each visual token.
        attention: float32 [L, G, N], pooled attention of the observing queries, 0 for the window; [L, 1, N], mean of
            the heads, for `Queries.ALL`; None for `Queries.NONE` and where `KVPolicy.observes` no prompt of the batch.
            The policy may write to it.
        ops: Kernels or references.
        skip_scoring: Request and index of each screenshot that loses nothing now, whose scores nobody will read.
        skip_storing: Request and index of each screenshot whose scores for pruning again are stored already, for good.
        wants_storing: Scores are stored, so that tokens can be pruned again without a query.
        split: How screenshots share a request's budget.
        sinks: bool [L, N], tokens that were told apart as sinks, whose norms say 0; None where nobody looks for them.
            The engine keeps or drops them, whatever their scores.
        all_groups: From what is known of the key heads in the pools, float32 [L, g, n], to that of all, [L, G, n].
    """

    layouts: Sequence[PromptLayout]
    states: Sequence[TrajectoryState]
    budgets: Sequence[float]
    kv_indptr: torch.Tensor
    slots: torch.Tensor
    keys: Sequence[torch.Tensor]
    values: Sequence[torch.Tensor]
    frame_offsets: torch.Tensor
    frame_norms: torch.Tensor
    attention: torch.Tensor | None
    ops: Ops
    skip_scoring: Set[tuple[int, int]] = frozenset()
    skip_storing: Set[tuple[int, int]] = frozenset()
    wants_storing: bool = False
    split: Split = Split.BY_SIZE
    sinks: torch.Tensor | None = None
    all_groups: Callable[[torch.Tensor], torch.Tensor] = _same

    @cached_property
    def bounds(self) -> tuple[int, ...]:
        """`kv_indptr` on the host."""
        bounds = [0]
        for layout in self.layouts:
            bounds.append(bounds[-1] + layout.num_live)
        return tuple(bounds)

    @property
    def attended(self) -> torch.Tensor:
        """`attention` of a policy that asked for it."""
        if self.attention is None:
            raise RuntimeError("no queries of this batch were observed, but the policy asks for their attention")
        return self.attention

    def scored_frames(self) -> Iterator[tuple[int, int]]:
        """Request and index of each screenshot that has live tokens, was observed, and whose scores somebody reads."""
        for request, layout in enumerate(self.layouts):
            for index, frame in enumerate(layout.frames):
                if frame.num_live and layout.window and (request, index) not in self.skip_scoring:
                    yield request, index

    def past(self, request: int) -> slice:
        """Packed range of a request's tokens before its window; empty where it was not observed."""
        first, layout = self.bounds[request], self.layouts[request]
        return slice(first, first + layout.num_past) if layout.window else slice(first, first)

    def frame(self, request: int, index: int) -> slice:
        """Packed range of a screenshot of a request."""
        span, first = self.layouts[request].frames[index], self.bounds[request]
        return slice(first + span.start, first + span.end)


@dataclass(frozen=True)
class PolicyScores:
    """What a policy returns.

    Attributes:
        calibrated: float32 [U, N], the higher, the sooner kept, comparable over layers; U is L, or L * G per head.
            Only private visual tokens are ever dropped, whatever the others' scores.
        layer_mean: float32 [N], what screenshots compete by.
        states: The state that each request leaves behind.
        for_pruning_again: float32 [U, N], what tokens compete by, over all branches, when they are pruned again and no
            query is there; None for ``calibrated``. Nobody reads what it says of screenshots in
            `Observation.skip_storing`.
        floors: For each request, the part of its equal share that a screenshot keeps in any case where all keep the
            same share; tokens compete for the rest. None: the whole of it.
        apart: bool [N], tokens that stay beside the budget, the same in each unit; None for none. The engine says it.
    """

    calibrated: torch.Tensor
    layer_mean: torch.Tensor
    states: Sequence[TrajectoryState]
    for_pruning_again: torch.Tensor | None = None
    floors: Sequence[float] | None = None
    apart: torch.Tensor | None = None

    @classmethod
    def of(cls, calibrated: torch.Tensor, seen: Observation) -> PolicyScores:
        """Scores of a policy that keeps no state."""
        return cls(calibrated, calibrated.mean(dim=0), seen.states)


class KVPolicy(ABC, Generic[P]):
    """A policy.

    Args:
        params: Its parameters.

    Attributes:
        queries: Whose attention it needs.
        split: How screenshots share the budget.
        per_head: Each key head keeps tokens of its own.
        needs_one_rank: It reads keys or values, or keeps tokens per head: with tensor parallelism a rank has only some.
        norms: What it wants to know of the layers' inputs.
        merge: What becomes of pairs that are dropped; None: they are gone.
        scores_once: A token's first score is the one to remember where it may be pruned again later: scores of a
            screenshot that has lost tokens do not compare with those of a whole one.
        saliencies: Values for each live token and key head that scoring holds at its peak.
    """

    queries: ClassVar[Queries] = Queries.WINDOW
    split: ClassVar[Split] = Split.BY_SCORE
    per_head: ClassVar[bool] = False
    needs_one_rank: ClassVar[bool] = False
    norms: ClassVar[Norms] = Norms.NONE
    scores_once: ClassVar[bool] = False
    saliencies: ClassVar[int] = 1
    merge: ClassVar[Merge | None] = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Refuse what cannot be recorded."""
        super().__init_subclass__(**kwargs)
        if cls.per_head and (cls.norms is not Norms.NONE or cls.queries is Queries.ALL):
            raise TypeError(
                f"{cls.__module__}: after a prune per head a slot has no one token in a layer, so that no norms and no "
                "sums of attention are kept for it; drop per_head, or what needs them"
            )

    def __init__(self, params: P) -> None:
        self.params = params

    @property
    def observation_window(self) -> int:
        """Queries at a prompt's end that observe, at most; 1 for a policy without such a parameter."""
        return getattr(self.params, "observation_window", 1)

    @property
    def pool_width(self) -> int:
        """Width of the average pooling of attention over tokens; 1 for a policy without such a parameter."""
        return getattr(self.params, "pool_width", 1)

    @property
    def sink_ratio(self) -> float | None:
        """Norm of a sink's layer input before the input norm, over the screenshot's median; None: nobody looks."""
        sinks = getattr(self.params, "sinks", OFF)
        return None if sinks == OFF else float(getattr(self.params, "sink_ratio", SINK_RATIO))

    @property
    def keeps_sinks(self) -> bool:
        """Sinks stay beside the budget; where not, they go before all others."""
        return getattr(self.params, "sinks", OFF) == KEEP

    def observes(self, layout: PromptLayout, state: TrajectoryState) -> bool:
        """Whether a prompt's queries matter, where the policy wants some: what nobody looks at is not computed."""
        del layout, state
        return True

    @abstractmethod
    def score(self, seen: Observation) -> PolicyScores:
        """Score every live token of the batch, now and for pruning it again."""
