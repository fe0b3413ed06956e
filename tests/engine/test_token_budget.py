"""One budget for all branches: what is kept, what is lost, what still answers."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, Final

import pytest

from tests.engine.branches import NUM_OUTPUT, play
from tests.engine.conversation import NUM_VISUAL, Chat, turn
from tests.engine.harness import TestEngine

pytestmark = pytest.mark.slow

LIMIT = 700
ENGINE: Final[Mapping[str, Any]] = {"kv_policy": "star-paper", "kv_token_budget": LIMIT, "max_prefill_tokens": 256}


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


def test_a_request_for_no_token_puts_no_step_off(engine: TestEngine) -> None:
    """It comes last in its batch: what the others bring is cut while all of them run, and not when one of them ends."""
    chats = play(engine, 4, 3)
    before = engine.stats()
    asked = [turn(chat, 70_000 + number) for number, chat in enumerate(chats)]

    async def together() -> dict[str, int]:
        async with engine.held():
            running = [await engine.queue(chat, 200) for chat in asked]
            cached = await engine.queue(turn(Chat(), 80_000), 0)
        await cached
        stats = await engine.stats_soon()
        assert not any(task.done() for task in running)
        await asyncio.gather(*running)
        return stats

    stats = engine.run(together())
    assert before["num_private_tokens"] + 4 * NUM_VISUAL > LIMIT, "there is something to cut"
    assert stats["num_private_tokens"] <= LIMIT
    assert stats["num_budget_steps"] == before["num_budget_steps"] + 1
    assert stats["num_budget_misses"] == before["num_budget_misses"]


def test_what_left_a_window_is_gone_and_the_rest_competes(engine: TestEngine) -> None:
    engine.flush()
    before = engine.stats()
    chat = Chat()
    for number in range(5):
        chat = turn(chat, 90_000 + number)
        # Its own budget has no effect: what is in the window competes with all others.
        answer = engine.answer(chat, NUM_OUTPUT, custom_params={"kv_image_window": 2, "kv_budget": 0.1})
        assert answer.meta["star_kv"][0]["pruned"] == max(0, number - 1) * NUM_VISUAL
        chat = chat.reply(answer.text)
    assert engine.stats()["num_budget_steps"] == before["num_budget_steps"], "there was room for all of the windows"
    # Segments that keep no token stand in the tree when it is brought below its budget.
    play(engine, 8, 3, first=95_000)
    stats = engine.stats()
    assert stats["num_budget_steps"] > before["num_budget_steps"]
    assert stats["num_private_tokens"] <= LIMIT
    assert stats["num_budget_misses"] == before["num_budget_misses"]
