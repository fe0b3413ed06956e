"""From scores to what each layer keeps of each private segment."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from star_kv_sglang.algorithm.state import TrajectoryState
from star_kv_sglang.algorithm.to_device import to_device
from star_kv_sglang.cache.radix_cache import KeptTokens
from star_kv_sglang.cache.segments import Segment
from star_kv_sglang.engine.host_copy import HostCopy
from star_kv_sglang.engine.plan import BatchPlan, equal_shares
from star_kv_sglang.engine.sinks import MOST_SINKS
from star_kv_sglang.policies.base.interface import PolicyScores, Split

if TYPE_CHECKING:
    from star_kv_sglang.triton_ops.dispatch import Ops


@dataclass(frozen=True)
class Ranking:
    """Each unit's best tokens of all segments of a batch, and how many of them stay.

    A unit is what chooses for itself: a layer, or a key head of a layer.

    Attributes:
        best: int32 [num_units, N], packed indices, as ``select_topn`` writes them.
        spans: Packed range of each segment.
        num_kept: int32 [num_segments], how many stay, on the device.
        quotas: The same on its way to the host.
        apart: int32 [num_segments], how many of these are beside the budget; None for none.
    """

    best: torch.Tensor
    spans: Sequence[tuple[int, int]]
    num_kept: torch.Tensor
    quotas: HostCopy
    apart: HostCopy | None = None

    def num_apart(self, segment: int) -> int:
        """Tokens that stay of a segment beside the budget."""
        return 0 if self.apart is None else int(self.apart.wait()[segment])

    def chosen(self, segment: int) -> torch.Tensor:
        """What each unit keeps of a segment: int64 [num_units, n], indices inside the segment."""
        start = self.spans[segment][0]
        return self.best[:, start : start + int(self.quotas.wait()[segment])].long() - start


@dataclass(frozen=True)
class Choice:
    """What a request's prune will do.

    Attributes:
        segments: Its private segments.
        first: Index of the first of them in the ranking.
        ranking: Of the whole batch; None when the batch has no segments.
        state: The trajectory state to store at the end of the prompt.
    """

    segments: Sequence[Segment]
    first: int
    ranking: Ranking | None
    state: TrajectoryState

    def kept(self) -> list[KeptTokens]:
        """What stays of each segment; waits for the batch's scores, which are there when its tokens are."""
        if self.ranking is None:
            return []
        return [
            KeptTokens(segment.start, segment.end, segment.num_live, self.ranking.chosen(i), self.ranking.num_apart(i))
            for i, segment in enumerate(self.segments, start=self.first)
        ]


@dataclass
class _Shares:
    """What segments share.

    Attributes:
        indptr: Bounds of the segments that share a budget.
        budgets: One for each such group.
        floors: What each segment keeps in any case.
    """

    indptr: list[int] = field(default_factory=lambda: [0])
    budgets: list[int] = field(default_factory=list)
    floors: list[int] = field(default_factory=list)


def choose(
    plan: BatchPlan, scored: PolicyScores, *, split: Split, frame_floor: float, page_size: int, ops: Ops
) -> list[Choice]:
    """Quotas under each request's budget, then each unit's best tokens inside of each segment.

    Tokens of the observation window have no score; where one lies in a segment it is kept before all others.

    Args:
        plan: The batch.
        scored: Scores of its requests that are scored.
        split: How segments share a budget.
        frame_floor: Least share of a segment that stays, while the budget allows.
        page_size: Quotas are multiples of it.
        ops: Kernels or references.
    """
    spans: list[tuple[int, int]] = []
    shared, firsts = _Shares(), []
    known: list[int | None] = []
    first = 0
    for number, request in enumerate(plan.scored):
        firsts.append(len(spans))
        for segment, start in zip(request.segments, request.segment_starts, strict=True):
            spans.append((first + start, first + start + segment.num_live))
        known += request.known_apart
        part = 1.0 if scored.floors is None else scored.floors[number]
        for segments_of_group, quota in request.groups:
            shared.indptr.append(shared.indptr[-1] + len(segments_of_group))
            shared.budgets.append(quota + sum(s.num_apart for s in segments_of_group))
            if split is Split.BY_SCORE:
                shared.floors += segment_floors(segments_of_group, quota, frame_floor, page_size)
            else:
                shared.floors += part_of_shares(segments_of_group, quota, part, page_size)
        window = slice(first + request.layout.num_past, first + request.layout.num_live)
        scored.calibrated[:, window] = math.inf
        scored.layer_mean[window] = math.inf
        first += request.layout.num_live
    if not spans:
        return [Choice((), 0, None, state) for state in scored.states]
    ranking = _rank(scored, spans, shared, known, page_size, ops)
    return [
        Choice(request.segments, start, ranking, state)
        for request, start, state in zip(plan.scored, firsts, scored.states, strict=True)
    ]


def _rank(
    scored: PolicyScores,
    spans: Sequence[tuple[int, int]],
    shared: _Shares,
    known: Sequence[int | None],
    page_size: int,
    ops: Ops,
) -> Ranking:
    """Quotas of all segments, and each unit's best tokens; ``known``: what of a segment is known to be beside them."""
    device = scored.layer_mean.device
    segments = to_device(spans, device)
    longest = max(end - start for start, end in spans)
    quotas = ops.segment_quotas(
        scored.layer_mean,
        segments,
        to_device(shared.indptr, device),
        to_device(shared.budgets, device),
        to_device(shared.floors, device),
        page_size=page_size,
        max_segment=longest,
    )
    apart = None
    if scored.apart is not None:
        quotas, apart = ops.apart_quotas(
            quotas,
            scored.apart,
            segments,
            to_device([-1 if count is None else count for count in known], device),
            most=MOST_SINKS,
            page_size=page_size,
            max_segment=longest,
        )
    best = torch.full(scored.calibrated.shape, -1, dtype=torch.int32, device=device)
    ops.select_topn(scored.calibrated, segments, quotas, max_segment=longest, out=best)
    return Ranking(best, spans, quotas, HostCopy.start(quotas), None if apart is None else HostCopy.start(apart))


def part_of_shares(segments: Sequence[Segment], quota: int, part: float, page_size: int) -> list[int]:
    """Tokens that each segment keeps in any case where a part of its equal share is sure and the rest is competed for.

    A segment that holds no more than its share loses nothing: nobody may have scored it.
    """
    return [
        share if share >= s.num_live else s.num_apart + int(part * (share - s.num_apart)) // page_size * page_size
        for s, share in zip(segments, equal_shares(segments, quota, page_size), strict=True)
    ]


def segment_floors(segments: Sequence[Segment], quota: int, frame_floor: float, page_size: int) -> list[int]:
    """Tokens that each segment keeps in any case; none where all floors together would pass the budget.

    They are whole pages, as what is kept is: a floor of one token in a page would otherwise keep a page too many.
    """
    pages = (-(-math.ceil(frame_floor * s.core_len) // page_size) for s in segments)
    floors = [min(count * page_size, s.num_live) for count, s in zip(pages, segments, strict=True)]
    floors = floors if sum(floors) <= quota else [0] * len(floors)
    return [min(n + s.num_apart, s.num_live) for n, s in zip(floors, segments, strict=True)]
