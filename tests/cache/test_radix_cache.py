"""The tree's promises, one case each."""

from __future__ import annotations

from array import array
from unittest.mock import Mock

import pytest
import torch
from sglang.srt.mem_cache.base_prefix_cache import MatchPrefixParams
from sglang.srt.mem_cache.radix_cache import RadixKey

from star_kv_sglang.algorithm.state import TrajectoryState
from star_kv_sglang.cache.radix_cache import KeptTokens
from star_kv_sglang.cache.segments import Segment
from star_kv_sglang.engine import compaction
from star_kv_sglang.engine.faults import HalfPrunedError
from tests.cache.invariants import check
from tests.cache.sequences import frame_length, frames_in
from tests.cache.world import NUM_LAYERS, FakeRequest, TreeWorld

SHOT = -30 - 97
OTHER_SHOT = -12 - 97


def prompt(*parts: int | array[int]) -> array[int]:
    """Words are themselves, a negative number is a whole screenshot."""
    tokens = array("q")
    for part in parts:
        if isinstance(part, array):
            tokens += part
        else:
            tokens += array("q", [part] * (frame_length(part) if part < 0 else 1))
    return tokens


@pytest.fixture
def world() -> TreeWorld:
    return TreeWorld(num_slots=400, page_size=1, seed=0)


def run_prompt(world: TreeWorld, tokens: array[int], *, keep: int | None = 4, salt: str | None = None) -> FakeRequest:
    """Admit and prefill; every private segment keeps ``keep`` tokens (None: nothing is pruned)."""
    req = world.admit(tokens, frames_in(tokens), salt)
    assert req is not None
    assert world.prefill(req, len(tokens))
    planned = world.choices.pop(req.rid)
    if keep is not None:
        world.choices[req.rid] = [
            KeptTokens(k.start, k.end, k.num_live, torch.arange(min(keep, k.num_live)).repeat(NUM_LAYERS, 1))
            for k in planned
        ]
    world.store(req)
    check(world)
    return req


def finish(world: TreeWorld, req: FakeRequest) -> array[int]:
    """One decoded token, then the end of the request; returns its tokens."""
    world.decode(req, 7)
    world.decode(req, 7)
    world.finish(req, is_insert=True)
    check(world)
    return req.full_untruncated_fill_ids


def hit_length(world: TreeWorld, tokens: array[int], salt: str | None = None) -> int:
    return world.tree.match_prefix(MatchPrefixParams(key=RadixKey(tokens, salt))).device_prefix_len


def test_a_pruned_prefix_matches_in_full(world: TreeWorld) -> None:
    history = finish(world, run_prompt(world, prompt(1, SHOT, 2)))
    assert hit_length(world, history + array("q", [3])) == len(history) - 1  # the last output token has no KV yet
    assert world.tree.total_size() == len(history) - 1 - (30 - 4)


def test_a_match_that_ends_in_a_sealed_segment_ends_before_it(world: TreeWorld) -> None:
    run_prompt(world, prompt(1, SHOT, 2))
    for inside in (1, 15, 29):
        assert hit_length(world, prompt(1, SHOT)[: 1 + inside]) == 1
    assert hit_length(world, prompt(1, SHOT)) == 31
    check(world)


def test_a_key_that_ends_in_a_sealed_segment_is_stored_up_to_it(world: TreeWorld) -> None:
    run_prompt(world, prompt(1, SHOT, 2))
    req = world.admit(prompt(1, SHOT), frames_in(prompt(1, SHOT)), None)
    assert req is not None
    assert req.prefix_len == 1
    assert world.prefill(req, 16)
    world.store(req)
    check(world)
    assert req.kv.cache_protected_len == 1, "the head of a sealed segment stays the request's own"
    assert req.prefix_len == 16
    assert world.prefill(req, 31)
    world.store(req)
    check(world)
    assert req.kv.cache_protected_len == 31, "the whole segment is in the tree: the duplicate is given back"


def test_an_unsealed_screenshot_may_be_split(world: TreeWorld) -> None:
    req = world.admit(prompt(1, SHOT, 2), frames_in(prompt(1, SHOT, 2)), None)
    assert req is not None
    for end in (16, 32):
        assert world.prefill(req, end)
        world.choices[req.rid] = []
        world.store(req)
        check(world)
    segments = [s for n in world.tree.path(req.last_node) for s in world.tree.extra(n).segments]
    assert [(s.start, s.end) for s in segments] == [(1, 16), (16, 31)]


def test_a_node_that_two_requests_hold_stays_whole(world: TreeWorld) -> None:
    first = world.admit(prompt(1, SHOT, 2), frames_in(prompt(1, SHOT, 2)), None)
    second = world.admit(prompt(1, SHOT, 3), frames_in(prompt(1, SHOT, 3)), None)
    assert first is not None
    assert second is not None
    for req in (first, second):
        assert world.prefill(req, 32)
        world.store(req)
        check(world)
    shared = world.tree.path(first.last_node)[0]
    assert shared.lock_ref == 2
    assert world.tree.num_live(shared) == 31


def test_a_branch_that_may_come_back_keeps_its_prefix_whole(world: TreeWorld) -> None:
    """Two requests with the same words end; one goes on: what the other one needs is not pruned."""
    tokens = prompt(1, SHOT, 2)
    first, second = run_prompt(world, tokens, keep=None), run_prompt(world, tokens, keep=None)
    history = finish(world, first)
    assert finish(world, second) == history
    onward = run_prompt(world, history + prompt(OTHER_SHOT, 4))
    segments = [s for n in world.tree.path(onward.last_node) for s in world.tree.extra(n).segments]
    assert [s.sealed for s in segments] == [False, True]


def test_what_stopped_being_shared_is_pruned_at_the_next_turn(world: TreeWorld) -> None:
    history = finish(world, run_prompt(world, prompt(1, SHOT, 2), keep=None))
    onward = run_prompt(world, history + prompt(OTHER_SHOT, 4))
    segments = [s for n in world.tree.path(onward.last_node) for s in world.tree.extra(n).segments]
    assert [(s.sealed, s.num_live) for s in segments] == [(True, 4), (True, 4)]


def test_a_pinned_prefix_stays_whole(world: TreeWorld) -> None:
    first = run_prompt(world, prompt(1, SHOT, 2), keep=None)
    assert world.pin(first, at_most=32)
    history = finish(world, first)
    onward = run_prompt(world, history + prompt(OTHER_SHOT, 4))
    segments = [s for n in world.tree.path(onward.last_node) for s in world.tree.extra(n).segments]
    assert [s.sealed for s in segments] == [False, True]


def test_a_pin_beyond_the_bound_is_refused_and_changes_nothing(world: TreeWorld) -> None:
    first, second = run_prompt(world, prompt(1, SHOT, 2), keep=None), run_prompt(world, prompt(3, SHOT, 2), keep=None)
    assert world.pin(first, at_most=32)
    assert not world.pin(second, at_most=63)
    assert world.tree.sharing.pinned_size == 32
    history = finish(world, second)
    onward = run_prompt(world, history + prompt(OTHER_SHOT, 4))
    assert [s.sealed for n in world.tree.path(onward.last_node) for s in world.tree.extra(n).segments] == [True, True]
    assert world.pin(first, at_most=0), "what is pinned needs no more room"


def test_an_evicted_pin_makes_room_for_the_next(world: TreeWorld) -> None:
    first = run_prompt(world, prompt(1, SHOT, 2), keep=None)
    assert world.pin(first, at_most=32)
    finish(world, first)
    world.evict(1000)
    assert world.tree.sharing.pinned_size == 0
    second = run_prompt(world, prompt(3, SHOT, 2), keep=None)
    assert world.pin(second, at_most=32)
    check(world)


def test_a_choice_that_has_become_stale_is_skipped(world: TreeWorld) -> None:
    req = world.admit(prompt(1, SHOT, 2), frames_in(prompt(1, SHOT, 2)), None)
    assert req is not None
    assert world.prefill(req, 32)
    world.choices[req.rid] = [KeptTokens(1, 31, 29, torch.arange(3).repeat(NUM_LAYERS, 1))]
    world.store(req)
    check(world)
    assert world.tree.total_size() == 32


def test_salts_do_not_meet(world: TreeWorld) -> None:
    run_prompt(world, prompt(1, SHOT, 2), salt="a")
    assert hit_length(world, prompt(1, SHOT, 2), "a") == 32
    assert hit_length(world, prompt(1, SHOT, 2), "b") == 0
    assert hit_length(world, prompt(1, SHOT, 2)) == 0


def test_state_stays_with_the_end_of_its_prompt_when_the_node_splits(world: TreeWorld) -> None:
    req = run_prompt(world, prompt(1, 2, SHOT, 3), keep=None)
    state = TrajectoryState(step=1, num_frames=1)
    world.tree.extra(req.last_node).state = state
    hit_length(world, prompt(1, 2, 9))
    path = world.tree.path(req.last_node)
    assert len(path) == 2
    assert [world.tree.extra(n).state for n in path] == [None, state]


def test_eviction_counts_live_slots(world: TreeWorld) -> None:
    finish(world, run_prompt(world, prompt(1, SHOT, 2)))
    before = world.allocator.available_size()
    live = world.tree.total_size()
    world.evict(10_000)
    check(world)
    assert world.allocator.available_size() == before + live == 400


def test_a_segment_refuses_to_be_split_when_sealed() -> None:
    frame = frames_in(prompt(1, SHOT))[0]
    sealed = Segment.unpruned(frame, 1, 31, 1).pruned_to(3)
    assert sealed.split_at(1, 1) == (None, sealed)
    assert sealed.split_at(31, 1) == (sealed, None)
    with pytest.raises(ValueError, match="cannot be split at 9"):
        sealed.split_at(9, 1)


@pytest.mark.parametrize(
    ("start", "end", "core"), [(0, 16, (0, 16)), (1, 40, (16, 32)), (5, 12, (16, 16)), (16, 47, (16, 32))]
)
def test_only_whole_pages_inside_a_segment_are_its_core(start: int, end: int, core: tuple[int, int]) -> None:
    segment = Segment.unpruned(frames_in(prompt(SHOT))[0], start, end, 16)
    assert (segment.core_start, segment.core_end) == core
    assert segment.num_live == segment.core_len


def test_what_another_request_has_stored_meanwhile_is_not_planned_for(world: TreeWorld) -> None:
    """The second prompt was matched before the first one was stored: the screenshot in common is not its own."""
    second = world.admit(prompt(1, SHOT, 3, OTHER_SHOT, 4), frames_in(prompt(1, SHOT, 3, OTHER_SHOT, 4)), None)
    assert second is not None
    first = run_prompt(world, prompt(1, SHOT, 2), keep=None)
    assert world.prefill(second, len(second.origin_input_ids))
    assert [(k.start, k.end) for k in world.choices[second.rid]] == [(32, 44)]
    world.store(second)
    check(world)
    assert world.tree.num_live(world.tree.path(first.last_node)[0]) == 31


def test_an_answer_that_its_agent_rewrites_shares_nothing(world: TreeWorld) -> None:
    """The next turn sends another answer than it got: the old one is nobody's, and the branch goes on as private."""
    first = prompt(1, SHOT, 2)
    answered = finish(world, run_prompt(world, first, keep=None))
    rewritten = prompt(first, 8, OTHER_SHOT, 3)
    assert rewritten[: len(answered)] != answered
    second = run_prompt(world, rewritten, keep=4)
    assert world.shared_until(second) == 0
    assert [s.num_live for n in world.tree.path(second.last_node) for s in world.tree.extra(n).segments] == [4, 4]


def test_the_same_prompt_again_is_another_branch(world: TreeWorld) -> None:
    """Two agents with the same first turn and the same answer: both may come back."""
    first = prompt(1, SHOT, 2)
    finish(world, run_prompt(world, first, keep=None))
    finish(world, run_prompt(world, first, keep=None))
    one = run_prompt(world, prompt(first, 8, OTHER_SHOT, 3), keep=4)
    assert world.shared_until(one) == len(first)
    history = finish(world, one)
    other = run_prompt(world, prompt(first, 9, OTHER_SHOT, 4), keep=4)
    assert world.shared_until(other) == len(first)
    assert hit_length(world, history) == len(history) - 1


def test_an_error_before_tokens_move_changes_nothing(world: TreeWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    req = world.admit(prompt(1, SHOT, 2), frames_in(prompt(1, SHOT, 2)), None)
    assert req is not None
    assert world.prefill(req, 32)
    world.choices[req.rid] = [KeptTokens(1, 31, 30, torch.arange(3).repeat(NUM_LAYERS, 1))]
    monkeypatch.setattr(compaction, "target_slots", Mock(side_effect=ValueError("no memory")))
    with pytest.raises(ValueError, match="no memory"):
        world.store(req)
    check(world)
    assert world.tree.total_size() == 32


def test_an_error_after_tokens_have_moved_is_told_apart(world: TreeWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    req = world.admit(prompt(1, SHOT, 2), frames_in(prompt(1, SHOT, 2)), None)
    assert req is not None
    assert world.prefill(req, 32)
    world.choices[req.rid] = [KeptTokens(1, 31, 30, torch.arange(3).repeat(NUM_LAYERS, 1))]
    monkeypatch.setattr(world.tree, "punch_all", Mock(side_effect=ValueError("no memory")))
    with pytest.raises(HalfPrunedError, match="broke off in the middle: no memory"):
        world.store(req)
