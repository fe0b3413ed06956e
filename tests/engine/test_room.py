"""A batch with more live tokens than there is memory to score: what fits is scored, the rest stays whole, counted."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from star_kv_sglang.engine import memory
from star_kv_sglang.engine.choice import choose
from star_kv_sglang.engine.faults import FaultLog
from star_kv_sglang.engine.observer import Observer
from star_kv_sglang.engine.plan import BatchPlan, RequestPlan, within_room
from star_kv_sglang.engine.stats import PolicyCounters
from tests.engine.conversation import Chat, turn
from tests.engine.harness import running_engine
from tests.engine.plugin import sglang_plugin
from tests.policies.prefill import PROMPTS, Prefill, make_policy, observe, planned, pools_of, watched


def branch(num_live: int, window: int = 8) -> RequestPlan:
    """A request with a cached history."""
    request = planned(PROMPTS[0], 0, 0, PROMPTS[0].length)
    return replace(request, layout=replace(request.layout, num_live=num_live, window=window, frames=()))


def test_of_many_long_branches_those_that_fit_are_scored() -> None:
    plan = BatchPlan(within_room([branch(27_000)] * 32, 128_000 + 8192))
    assert [request.left_whole for request in plan.requests] == [False] * 5 + [True] * 27
    assert len(plan.scored) == 5


def test_a_small_prompt_behind_one_that_does_not_fit_is_scored() -> None:
    requests = within_room([branch(60), branch(90), branch(5, window=0), branch(40)], 100)
    assert [request.left_whole for request in requests] == [False, True, False, False]


@pytest.mark.parametrize("name", ["star-paper", "snapkv", "star", "h2o"])
@pytest.mark.parametrize("left", [0, 1], ids=["the_first_is_left", "the_last_is_left"])
def test_scores_do_not_depend_on_what_is_left_whole_and_take_no_memory_for_it(name: str, left: int) -> None:
    run, policy = Prefill.random(2), make_policy(name, **({"question_share": 0.5} if name == "star" else {}))
    _, everything = watched(policy, run)
    expected = policy.score(everything)
    requests = [planned(prompt, 4, 0, prompt.length) for prompt in PROMPTS]
    plan = BatchPlan([replace(one, left_whole=index == left) for index, one in enumerate(requests)])
    pools = pools_of(policy, run)
    observer = Observer(
        pools, policy.pool_width, everything.ops, FaultLog(PolicyCounters()), queries=policy.queries, norms=policy.norms
    )
    observe(observer, plan, run, torch.arange(len(run.slots)), run.slots)
    assert plan.slots is not None and plan.indptr is not None
    num_live = PROMPTS[1 - left].length
    assert (len(plan.slots), plan.indptr.tolist()) == (num_live, [0, num_live])
    if plan.group_scores is not None:
        assert plan.group_scores.shape[2] == num_live
    slots, side = plan.slots, pools.side
    seen = replace(
        everything,
        layouts=[request.layout for request in plan.scored],
        states=[request.state for request in plan.scored],
        budgets=[request.budget for request in plan.scored],
        kv_indptr=plan.indptr,
        slots=slots,
        frame_offsets=side.frame_offsets[:, slots],
        frame_norms=side.frame_norms[:, slots],
        attention=plan.group_scores if side.attention is None else side.attention[:, None, slots],
    )
    scored = policy.score(seen)
    first = 0 if left else PROMPTS[0].length
    torch.testing.assert_close(scored.calibrated, expected.calibrated[:, first : first + num_live])
    (choice,) = choose(plan, scored, split=policy.split, frame_floor=0.02, page_size=1, ops=seen.ops)
    assert len(choice.kept()) == len(PROMPTS[1 - left].frames)


def register() -> None:
    """Of a plugin: nothing is left for scoring."""
    if multiprocessing.parent_process() is not None:
        memory.MOST_WORKSPACE = 10**15


@pytest.mark.slow
def test_without_room_every_prompt_stays_whole(checkpoint: Callable[[str], Path]) -> None:
    with (
        sglang_plugin(__name__),
        running_engine(checkpoint("qwen2_5_vl"), kv_policy="star-paper", kv_budget=0.2) as engine,
    ):
        chat = Chat()
        for number in (1, 2):
            chat = turn(chat, number)
            chat = chat.reply(engine.answer(chat, 4).text)
        stats = engine.stats()
        assert (stats["num_prompts_left_whole"], stats["num_scored_prompts"], stats["num_hole_tokens"]) == (2, 0, 0)
