"""Of a chain of prompts only the newest holds a running pattern; where a branch may fork, every state stays whole."""

from __future__ import annotations

from array import array

import pytest
import torch

from star_kv_sglang.algorithm.state import TrajectoryState
from star_kv_sglang.engine.plan import inherited_state
from star_kv_sglang.engine.pruning import keep_newest_pattern
from star_kv_sglang.engine.stats import take_census
from tests.cache.sequences import frames_in
from tests.cache.test_radix_cache import OTHER_SHOT, SHOT, finish, hit_length, prompt, run_prompt
from tests.cache.world import FakeRequest, TreeWorld

LAYERS, GROUPS, TOKENS = 2, 3, 10


@pytest.fixture
def world() -> TreeWorld:
    return TreeWorld(num_slots=600, page_size=1, seed=0)


def score(world: TreeWorld, req: FakeRequest, step: int) -> TrajectoryState:
    """What scoring leaves behind at the end of a prompt."""
    pattern, mi = torch.full((LAYERS, GROUPS, TOKENS), float(step)), torch.full((LAYERS, GROUPS), float(step))
    state = TrajectoryState(step=step, num_frames=step, mi_ema=mi, pattern_ema=pattern.half())
    path = world.tree.path(req.last_node)
    world.tree.extra(path[-1]).state = state
    private_from = max(world.shared_until(req), world.peer_prefix_len(req))
    keep_newest_pattern(world.tree, path, private_from=private_from)
    return state


def turns(world: TreeWorld, number: int) -> tuple[FakeRequest, list[array[int]]]:
    """A branch of so many turns, the last still running; each brings a screenshot. Its prompts."""
    prompts, history = [], array("q")
    for step in range(1, number + 1):
        prompts.append(prompt(history, 20 + step, SHOT, 2))
        req = run_prompt(world, prompts[-1])
        score(world, req, step)
        history = finish(world, req) if step < number else history
    return req, prompts


def states(world: TreeWorld, req: FakeRequest) -> list[TrajectoryState]:
    extras = (world.tree.extra(node) for node in world.tree.path(req.last_node))
    return [extra.state for extra in extras if extra.state is not None]


def test_only_the_newest_of_a_chain_holds_a_pattern(world: TreeWorld) -> None:
    req, _ = turns(world, 4)
    assert [state.step for state in states(world, req)] == [1, 2, 3, 4]
    assert [state.pattern_ema is not None for state in states(world, req)] == [False, False, False, True]
    assert inherited_state(world.tree, world.tree.path(req.last_node)).pattern_ema is not None
    # a pattern of float16, and for each prompt the rest of its state, float32
    assert take_census(world.tree).num_state_bytes == LAYERS * GROUPS * (TOKENS * 2 + 4 * 4)


def test_a_prompt_without_a_state_takes_nothing_from_the_one_before(world: TreeWorld) -> None:
    req, _ = turns(world, 2)
    history = finish(world, req)
    spoiled = run_prompt(world, prompt(history, 9, OTHER_SHOT, 3))
    path = world.tree.path(spoiled.last_node)
    keep_newest_pattern(world.tree, path, private_from=world.shared_until(spoiled))
    state = inherited_state(world.tree, path)
    assert state.step == 2 and state.pattern_ema is not None


def test_branches_that_fork_from_a_prompt_inherit_all_of_it(world: TreeWorld) -> None:
    """Two answers to one prompt: both branches may come back to it, so that it keeps its state."""
    first = prompt(1, SHOT, 2)
    one, other = (run_prompt(world, first, keep=None) for _ in range(2))
    forked = score(world, one, 1)
    history = finish(world, one)
    again = prompt(first, 8)
    finish(world, other)
    score(world, run_prompt(world, prompt(history, OTHER_SHOT, 4)), 2)
    late = world.admit(again, frames_in(again), None)
    assert late is not None
    assert inherited_state(world.tree, world.tree.path(late.last_node)) is forked


def test_a_pinned_prompt_keeps_its_pattern(world: TreeWorld) -> None:
    req = run_prompt(world, prompt(1, SHOT, 2), keep=None)
    kept = score(world, req, 1)
    assert world.pin(req, at_most=500)
    score(world, run_prompt(world, prompt(finish(world, req), OTHER_SHOT, 3)), 2)
    fork = prompt(1, SHOT, 2, 9)
    late = world.admit(fork, frames_in(fork), None)
    assert late is not None
    assert inherited_state(world.tree, world.tree.path(late.last_node)) is kept


def test_a_prompt_that_a_waiting_request_begins_with_keeps_its_pattern(world: TreeWorld) -> None:
    first = prompt(1, SHOT, 2)
    req = run_prompt(world, first, keep=None)
    kept = score(world, req, 1)
    history = finish(world, req)
    going_on = world.admit(prompt(history, OTHER_SHOT, 3), frames_in(prompt(history, OTHER_SHOT, 3)), None)
    waiting = world.admit(prompt(first, 9), frames_in(prompt(first, 9)), None)
    assert going_on is not None and waiting is not None
    assert world.prefill(going_on, len(going_on.origin_input_ids))
    world.choices.clear()
    world.store(going_on)
    score(world, going_on, 2)
    assert inherited_state(world.tree, world.tree.path(waiting.last_node)) is kept


def test_a_turn_that_is_rewritten_inherits_the_rest_of_the_state(world: TreeWorld) -> None:
    _, prompts = turns(world, 3)
    rewritten = prompt(prompts[0], 9, OTHER_SHOT, 3)
    assert hit_length(world, rewritten) >= len(prompts[0])
    late = world.admit(rewritten, frames_in(rewritten), None)
    assert late is not None
    state = inherited_state(world.tree, world.tree.path(late.last_node))
    assert (state.step, state.num_frames, state.pattern_ema) == (1, 1, None)
    assert state.mi_ema is not None and bool((state.mi_ema == 1).all())


def test_a_turn_without_a_screenshot_leaves_the_pattern_that_it_shares(world: TreeWorld) -> None:
    """It takes no memory of its own, and a request that was put back may be followed by one that ends before it."""
    req, _ = turns(world, 3)
    path = world.tree.path(req.last_node)
    newest, before = world.tree.extra(path[-1]), world.tree.extra(path[-2])
    before.state = newest.state
    keep_newest_pattern(world.tree, path, private_from=0)
    assert before.state is newest.state
    assert newest.state is not None and newest.state.pattern_ema is not None
