"""With pages of several tokens: whole pages stay, and never more than the budget allows."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from star_kv_sglang.algorithm.layout import FrameSpan, PromptLayout
from star_kv_sglang.algorithm.state import TrajectoryState
from star_kv_sglang.cache.segments import Frame, segments_between
from star_kv_sglang.engine.choice import choose, segment_floors
from star_kv_sglang.engine.image_window import ImageWindow
from star_kv_sglang.engine.plan import BatchPlan, RequestPlan, visual_quota
from star_kv_sglang.policies.base.interface import PolicyScores, Split
from star_kv_sglang.triton_ops.dispatch import get_ops

NUM_LAYERS = 2
WINDOW = 8
TEXT_AFTER = 10


def prompt(sizes: list[tuple[int, int]], gaps: list[int], *, cached: int, page_size: int, budget: float) -> RequestPlan:
    """A prompt whose first ``cached`` tokens, in whole pages, belong to others; all of its tokens are live.

    Args:
        sizes: Rows and columns of each screenshot.
        gaps: Text before each.
    """
    frames, position = [], 0
    for number, ((rows, cols), gap) in enumerate(zip(sizes, gaps, strict=True)):
        frames.append(Frame(position + gap, rows, cols, number))
        position = frames[-1].end
    end = position + TEXT_AFTER
    start = min(cached, end - WINDOW) // page_size * page_size
    whole = end // page_size * page_size
    segments = tuple(s for s in segments_between(frames, start, whole, page_size) if s.core_len)
    past = end - WINDOW
    spans = tuple(FrameSpan(min(f.start, past), min(f.end, past), f.rows, f.cols) for f in frames)
    return RequestPlan(
        req=cast(Any, SimpleNamespace(rid="r")),
        layout=PromptLayout(end, WINDOW, spans, len(spans)),
        new_start=start,
        new_end=end,
        new_frames=tuple(frames),
        segments=segments,
        segment_starts=tuple(s.core_start for s in segments),
        quota=visual_quota(segments, budget),
        state=TrajectoryState(),
        **({"budget": budget} if "budget" in RequestPlan.__dataclass_fields__ else {}),
    )


def kept_sizes(plan: RequestPlan, page_size: int, split: Split, seed: int) -> list[int]:
    """What a choice by random scores keeps of each segment, after checking the choice itself."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(NUM_LAYERS, plan.layout.num_live, generator=generator)
    scored = PolicyScores(scores, scores.mean(dim=0), [TrajectoryState()])
    ops = get_ops("reference")
    (choice,) = choose(BatchPlan([plan]), scored, split=split, frame_floor=0.02, page_size=page_size, ops=ops)
    sizes = []
    for segment, kept in zip(plan.segments, choice.kept(), strict=True):
        assert (kept.start, kept.end, kept.num_live) == (segment.start, segment.end, segment.num_live)
        assert (kept.chosen.diff(dim=1) > 0).all()
        assert not kept.chosen.numel() or 0 <= kept.chosen.min() <= kept.chosen.max() < segment.num_live
        sizes.append(kept.chosen.shape[1])
    return sizes


@pytest.mark.parametrize("split", list(Split))
@pytest.mark.parametrize("page_size", [1, 16, 64])
@given(data=st.data())
def test_whole_pages_stay_within_the_budget(split: Split, page_size: int, data: st.DataObject) -> None:
    num_frames = data.draw(st.integers(1, 4))
    side = st.integers(1, 20)
    sizes = [(data.draw(side), data.draw(side)) for _ in range(num_frames)]
    gaps = [data.draw(st.integers(1, 70)) for _ in range(num_frames)]
    budget = data.draw(st.sampled_from([0.05, 0.15, 0.2, 0.5, 0.9]))
    plan = prompt(sizes, gaps, cached=data.draw(st.integers(0, 300)), page_size=page_size, budget=budget)
    sizes_kept = kept_sizes(plan, page_size, split, data.draw(st.integers(0, 99)))
    visual = sum(s.end - s.start for s in plan.segments)
    outside = sum(s.end - s.start - s.core_len for s in plan.segments)
    assert all(n % page_size == 0 and n <= s.num_live for n, s in zip(sizes_kept, plan.segments, strict=True))
    assert sum(sizes_kept) + outside <= max(math.ceil(budget * visual), outside)
    # rounding down costs less than a page of each segment
    assert sum(sizes_kept) > plan.quota - page_size * len(plan.segments) or not plan.segments


def test_floor_of_a_few_tokens_does_not_keep_a_page_that_the_budget_has_no_room_for() -> None:
    plan = prompt([(9, 14), (9, 14)], [2, 2], cached=0, page_size=16, budget=0.15)
    assert [s.core_len for s in plan.segments] == [112, 112]
    assert plan.quota == 10  # 38 of 252, 28 of which lie outside of whole pages
    assert segment_floors(plan.segments, plan.quota, 0.02, 16) == [0, 0]
    assert segment_floors(plan.segments, plan.quota, 0.02, 1) == [3, 3]


def test_screenshot_within_one_page_has_no_core_and_is_left_alone() -> None:
    plan = prompt([(5, 9)], [10], cached=0, page_size=64, budget=0.2)
    assert (plan.segments, plan.quota) == ((), 0)


@pytest.mark.parametrize("split", list(Split))
@pytest.mark.parametrize("page_size", [1, 16])
@pytest.mark.parametrize(("size", "rest"), [(1, 0.0), (2, 0.0), (1, 0.25), (9, 0.0)])
def test_what_is_before_a_window_keeps_its_rest_and_the_window_its_budget(
    split: Split, page_size: int, size: int, rest: float
) -> None:
    window = ImageWindow(size, rest)
    whole = prompt([(8, 8), (8, 8), (8, 8)], [4, 4, 4], cached=0, page_size=page_size, budget=1.0)
    num_outside = window.num_outside(whole.new_frames, whole.segments)
    assert num_outside == max(0, 3 - size)
    outside, inside = whole.segments[:num_outside], whole.segments[num_outside:]
    plan = replace(
        whole, quota=visual_quota(inside, 0.5), num_outside=num_outside, quota_outside=visual_quota(outside, rest)
    )
    kept = kept_sizes(plan, page_size, split, seed=3)
    assert sum(kept[:num_outside]) <= plan.quota_outside
    assert sum(kept[num_outside:]) <= plan.quota
    assert sum(kept[num_outside:]) > plan.quota - page_size * len(inside)
    if rest == 0:
        assert kept[:num_outside] == [0] * num_outside
