"""From scores to what each layer keeps of each private segment."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from star_kv_sglang.algorithm.state import TrajectoryState
from star_kv_sglang.algorithm.to_device import to_device
from star_kv_sglang.cache.radix_cache import KeptTokens
from star_kv_sglang.cache.segments import Segment
from star_kv_sglang.engine.host_copy import HostCopy
from star_kv_sglang.engine.plan import BatchPlan, equal_shares
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
    """

    best: torch.Tensor
    spans: Sequence[tuple[int, int]]
    num_kept: torch.Tensor
    quotas: HostCopy

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
            KeptTokens(segment.start, segment.end, segment.num_live, self.ranking.chosen(i))
            for i, segment in enumerate(self.segments, start=self.first)
        ]


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
    indptr, budgets, floors, firsts = [0], [], [], []
    first = 0
    for request in plan.scored:
        firsts.append(len(spans))
        for segment, start in zip(request.segments, request.segment_starts, strict=True):
            spans.append((first + start, first + start + segment.num_live))
        for segments_of_group, quota in request.groups:
            indptr.append(indptr[-1] + len(segments_of_group))
            budgets.append(quota)
            if split is Split.BY_SCORE:
                floors += segment_floors(segments_of_group, quota, frame_floor, page_size)
            else:
                floors += equal_shares(segments_of_group, quota, page_size)
        window = slice(first + request.layout.num_past, first + request.layout.num_live)
        scored.calibrated[:, window] = math.inf
        scored.layer_mean[window] = math.inf
        first += request.layout.num_live
    if not spans:
        return [Choice((), 0, None, state) for state in scored.states]
    device = scored.layer_mean.device
    segments = to_device(spans, device)
    longest = max(end - start for start, end in spans)
    quotas = ops.segment_quotas(
        scored.layer_mean,
        segments,
        to_device(indptr, device),
        to_device(budgets, device),
        to_device(floors, device),
        page_size=page_size,
        max_segment=longest,
    )
    best = torch.full(scored.calibrated.shape, -1, dtype=torch.int32, device=device)
    ops.select_topn(scored.calibrated, segments, quotas, max_segment=longest, out=best)
    ranking = Ranking(best, spans, quotas, HostCopy.start(quotas))
    return [
        Choice(request.segments, start, ranking, state)
        for request, start, state in zip(plan.scored, firsts, scored.states, strict=True)
    ]


def segment_floors(segments: Sequence[Segment], quota: int, frame_floor: float, page_size: int) -> list[int]:
    """Tokens that each segment keeps in any case; none where all floors together would pass the budget.

    They are whole pages, as what is kept is: a floor of one token in a page would otherwise keep a page too many.
    """
    pages = (-(-math.ceil(frame_floor * s.core_len) // page_size) for s in segments)
    floors = [min(count * page_size, s.num_live) for count, s in zip(pages, segments, strict=True)]
    return floors if sum(floors) <= quota else [0] * len(floors)
