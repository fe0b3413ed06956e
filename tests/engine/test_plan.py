"""What a prompt's plan says before its forward."""

from __future__ import annotations

import pytest

from star_kv_sglang.cache.segments import Frame, Segment
from star_kv_sglang.engine.plan import stored_frames, uncut_frames

FRAMES = [Frame(4, 2, 4, 1), Frame(16, 2, 4, 2)]
"""Positions 4 to 12 and 16 to 24."""


def scored(start: int, end: int, page_size: int = 1, *, ident: int = 7) -> Segment:
    """A segment of the first frame or the second; scores of number 0 are not stored."""
    return Segment.unpruned(FRAMES[start >= 16], start, end, page_size).numbered(ident)


@pytest.mark.parametrize(
    ("known", "in_tree", "stored"),
    [
        pytest.param([], 0, set(), id="new"),
        pytest.param([scored(4, 12), scored(16, 24)], 30, {0, 1}, id="both"),
        pytest.param([scored(4, 12)], 14, {0}, id="second_is_new"),
        pytest.param([scored(4, 12), scored(16, 20)], 20, {0}, id="half_of_the_second_is_new"),
        pytest.param([scored(4, 12, ident=0), scored(16, 24)], 30, {1}, id="cached_but_not_scored"),
        pytest.param([scored(4, 8), scored(8, 12, ident=0), scored(16, 24)], 30, {1}, id="one_part_not_scored"),
        pytest.param([scored(4, 12, 16, ident=0), scored(16, 24, 4)], 32, {0, 1}, id="no_whole_page_to_prune"),
    ],
)
def test_a_screenshot_is_stored_when_all_of_it_is(known: list[Segment], in_tree: int, stored: set[int]) -> None:
    assert stored_frames(FRAMES, known, in_tree) == stored


@pytest.mark.parametrize(
    ("segments", "quota", "uncut"),
    [
        pytest.param([], 0, {0, 1}, id="all_shared"),
        pytest.param([scored(4, 12), scored(16, 24)], 16, {0, 1}, id="room_for_all"),
        pytest.param([scored(4, 12), scored(16, 24)], 8, set(), id="half_of_both"),
        pytest.param([scored(4, 12).pruned_to(4), scored(16, 24)], 8, {0}, id="the_first_has_its_share"),
        pytest.param([scored(4, 12).pruned_to(5), scored(16, 24)], 8, set(), id="the_first_has_one_too_many"),
        pytest.param([scored(16, 24)], 4, {0}, id="the_first_is_shared"),
        pytest.param([scored(4, 8).pruned_to(2), scored(8, 12), scored(16, 24)], 8, set(), id="one_part_is_cut"),
    ],
)
def test_what_has_its_share_is_uncut(segments: list[Segment], quota: int, uncut: set[int]) -> None:
    assert uncut_frames(FRAMES, segments, quota, 1) == uncut


def test_shares_of_whole_pages_settle_too() -> None:
    segments = [scored(4, 12, 4).pruned_to(4), scored(16, 24, 4)]
    assert uncut_frames(FRAMES, segments, 11, 4) == {0}
