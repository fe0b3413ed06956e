"""One budget for all branches, and a pool that runs short: what is kept, what is lost, what still answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.engine.conversation import Chat, question, screenshot
from tests.engine.harness import TestEngine, running_engine

pytestmark = pytest.mark.slow

COLS, ROWS = 6, 6
NUM_VISUAL = COLS * ROWS
NUM_OUTPUT = 4
LIMIT = 700


def turn(chat: Chat, seed: int) -> Chat:
    """The conversation with another screenshot and question."""
    return chat.ask(question(seed), screenshot(seed, COLS, ROWS, 28))


def play(engine: TestEngine, num_branches: int, num_turns: int, *, first: int = 0) -> list[Chat]:
    """Branches without a common screenshot, a turn of all of them at a time; stats are checked after every turn."""
    chats = [Chat() for _ in range(num_branches)]
    for step in range(num_turns):
        asked = [turn(chat, first + 1000 * step + number) for number, chat in enumerate(chats)]
        answers = engine.answer_together(asked, NUM_OUTPUT)
        chats = [chat.reply(answer.text) for chat, answer in zip(asked, answers, strict=True)]
    return chats


@pytest.fixture(scope="module")
def budget_engine(checkpoint: Callable[[str], Path]) -> Iterator[TestEngine]:
    with running_engine(
        checkpoint("qwen2_5_vl"), kv_policy="star-paper", kv_token_budget=LIMIT, max_prefill_tokens=256
    ) as engine:
        yield engine


@pytest.fixture
def engine(budget_engine: TestEngine) -> TestEngine:
    """The engine with an empty tree."""
    budget_engine.flush()
    return budget_engine


def test_nothing_is_pruned_below_the_budget(engine: TestEngine) -> None:
    before = engine.stats()
    play(engine, 2, 2)
    after = engine.stats()
    assert after["num_hole_tokens"] == 0 and after["num_budget_steps"] == before["num_budget_steps"]


def test_private_nodes_stay_below_the_budget(engine: TestEngine) -> None:
    for number in range(4):
        chats = play(engine, 8, 3, first=10_000 * number)
        stats = engine.stats()
        assert stats["num_private_tokens"] <= LIMIT
        assert stats["num_budget_misses"] == 0
    assert stats["peak_private_tokens"] <= LIMIT
    assert stats["num_budget_steps"] > 0 and stats["num_hole_tokens"] > 0
    # A branch that was cut is still hit in full.
    answer = engine.answer(turn(chats[-1], 99_999), NUM_OUTPUT)
    assert answer.cached > 3 * NUM_VISUAL


def test_branches_of_different_sizes_compete(engine: TestEngine) -> None:
    play(engine, 1, 10)
    play(engine, 6, 2, first=50_000)
    stats = engine.stats()
    assert stats["num_private_tokens"] <= LIMIT
    assert stats["num_live_tokens"] + stats["num_hole_tokens"] > LIMIT


@pytest.mark.parametrize("shrink", [True, False], ids=["shrink", "evict"])
def test_a_short_pool_shrinks_before_it_evicts(checkpoint: Callable[[str], Path], shrink: bool) -> None:
    config: dict[str, Any] = {"shrink_before_evict": shrink}
    with running_engine(
        checkpoint("qwen2_5_vl"),
        kv_policy="star-paper",
        kv_budget=0.5,
        policy_config=config,
        max_total_tokens=800,
        max_prefill_tokens=128,
    ) as engine:
        chats = play(engine, 8, 4)
        stats = engine.stats()
        cached = [engine.answer(turn(chat, 70_000 + n), NUM_OUTPUT).cached for n, chat in enumerate(chats)]
    assert (stats["num_shrunk_tokens"] > 0) == shrink
    whole = sum(length > 4 * NUM_VISUAL for length in cached)
    if shrink:
        assert stats["num_avoided_evictions"] > 0
        assert whole >= 6
    else:
        assert whole < 6
