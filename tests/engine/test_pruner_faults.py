"""Errors in the scorer and the pruner, injected into a running engine: the request stays whole, and nothing is lost."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from tests.engine.conversation import NUM_VISUAL, Chat, turn
from tests.engine.faulty import NUM_OUTPUT, Faulty, ask, faulty_engine
from tests.engine.masked_reference import read_drops

pytestmark = pytest.mark.slow

KEPT = 8
"""A fifth of the visual tokens."""


@pytest.fixture(scope="module")
def shared(checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Faulty]:
    folder = tmp_path_factory.mktemp("faults")
    config = {"trace_dir": str(folder / "traces")}
    with faulty_engine(folder, checkpoint("qwen2_5_vl"), kv_budget=0.2, policy_config=config) as faulty:
        yield faulty


@pytest.fixture
def faulty(shared: Faulty) -> Iterator[Faulty]:
    """The engine with an empty tree; afterwards no slot is lost."""
    shared.engine.flush()
    yield shared
    shared.engine.run(shared.engine.idle_stats())
    shared.engine.flush()
    assert shared.engine.run(shared.engine.idle_stats())["num_used_pool_tokens"] == 0


@pytest.mark.parametrize(
    ("place", "step"),
    [
        pytest.param("frames", "reading a request's screenshots", id="while_screenshots_are_read"),
        pytest.param("plan", "planning a prefill", id="while_planning"),
        pytest.param("rows", "observing a prefill", id="before_the_forward"),
        pytest.param("norms", "observing a prefill", id="in_a_layer_before_attention"),
        pytest.param("queries", "observing a prefill", id="in_a_layer_behind_attention"),
        pytest.param("score", "scoring a batch", id="while_scoring"),
        pytest.param("choose", "scoring a batch", id="while_choosing"),
        pytest.param("prune", "pruning a prompt", id="before_pruning"),
        pytest.param("move", "pruning a prompt", id="before_tokens_move"),
    ],
)
def test_a_fault_costs_the_request_its_pruning_only(faulty: Faulty, place: str, step: str) -> None:
    before = faulty.engine.stats()
    with faulty.failing(place):
        answer, chat = ask(faulty, turn(Chat(), 1))
        again, chat = ask(faulty, turn(chat, 2))
        after = faulty.engine.stats()
    assert after["num_hole_tokens"] == 0
    assert after["num_pruner_faults"] - before["num_pruner_faults"] == 2
    assert again.cached == answer.num_stored, "the unpruned prompt is in the tree"
    assert faulty.num_logged(f"ValueError: injected into {place}") == 1, "logged once, with its traceback"
    assert faulty.num_logged(f"{step} failed") >= 1
    _, chat = ask(faulty, turn(chat, 3))
    later = faulty.engine.stats()
    assert later["num_pruner_faults"] == after["num_pruner_faults"]
    # The next turn prunes all that is private: a fifth stays. Where screenshots could not be read, it reads them.
    expected = NUM_VISUAL - 8 if place == "frames" else 3 * NUM_VISUAL - 22
    assert later["num_hole_tokens"] == expected
    # The turn after that has nothing left to catch up with.
    ask(faulty, turn(chat, 4))
    last = faulty.engine.stats()
    assert last["num_hole_tokens"] == 4 * NUM_VISUAL - math.ceil(0.2 * 4 * NUM_VISUAL)
    assert last["num_pruner_faults"] == after["num_pruner_faults"]


@pytest.mark.parametrize(
    ("place", "step", "num_times"),
    [
        pytest.param("count", "counting what was kept", 1, id="statistics"),
        # Behind the prompt's prefill, and once more as the request ends without it.
        pytest.param("tell", "telling a response what was kept", 2, id="meta_info"),
    ],
)
def test_a_fault_in_what_only_tells_costs_nothing_else(faulty: Faulty, place: str, step: str, num_times: int) -> None:
    before = faulty.engine.stats()
    with faulty.failing(place):
        ask(faulty, turn(Chat(), 1))
        after = faulty.engine.stats()
    assert after["num_pruner_faults"] - before["num_pruner_faults"] == num_times
    assert after["num_hole_tokens"] == NUM_VISUAL - KEPT, "it is pruned as always"
    assert faulty.num_logged(f"{step} failed") == 1, "logged once"


def test_answers_do_not_depend_on_a_fault_before_them(faulty: Faulty) -> None:
    """What a prompt that stayed whole by a fault leaves in the tree is what a prompt that is kept by request leaves."""
    first, share = turn(Chat(), 1), {"kv_share": True}
    whole = faulty.engine.answer(first, NUM_OUTPUT, custom_params=share)
    expected = faulty.engine.answer(turn(first.reply(whole.text), 2), NUM_OUTPUT, custom_params=share)
    faulty.engine.flush()
    with faulty.failing("move"):
        unpruned, chat = ask(faulty, first)
        assert unpruned.token_ids == whole.token_ids
        assert ask(faulty, turn(chat, 2))[0].token_ids == expected.token_ids


def test_scores_that_are_no_numbers_give_way_to_recency(faulty: Faulty) -> None:
    before = faulty.engine.stats()
    with faulty.failing("nan"):
        _, chat = ask(faulty, turn(Chat(), 1), rid="spoiled")
        stats = faulty.engine.stats()
    assert stats["num_recency_fallbacks"] - before["num_recency_fallbacks"] == 1
    assert stats["num_pruner_faults"] == before["num_pruner_faults"]
    assert stats["num_hole_tokens"] == NUM_VISUAL - KEPT, "the budget holds"
    (drop,) = [drop for drop in read_drops(faulty.traces) if drop.rid == "spoiled"]
    newest = torch.arange(drop.end - KEPT, drop.end)
    assert all(torch.equal(torch.as_tensor(layer).sort().values, newest) for layer in drop.kept)
    ask(faulty, turn(chat, 2))
    later = faulty.engine.stats()
    assert later["num_recency_fallbacks"] == stats["num_recency_fallbacks"], "for that turn only"
    assert faulty.num_logged("scores are not a number") == 1
