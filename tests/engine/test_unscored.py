"""Screenshots that have no scores, and a tree that holds too much: they are whole or gone, and the report has them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.engine.conversation import NUM_VISUAL, Chat, turn
from tests.engine.faulty import NUM_OUTPUT, Faulty, ask, faulty_engine

pytestmark = pytest.mark.slow

LIMIT = 130
"""Three turns hold 141 tokens without a cut: the third is above it, by less than a screenshot."""


def test_a_screenshot_that_was_not_read_is_not_pruned_first(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    """`star` remembers a token's first score. Without what the layers were given it says nothing, for good."""
    with faulty_engine(tmp_path, checkpoint("qwen2_5_vl"), "star", kv_token_budget=LIMIT) as faulty:
        for number, place in enumerate(("frames", "plan", "rows", "norms"), start=1):
            faulty.engine.flush()
            with faulty.failing(place):
                _, chat = ask(faulty, turn(Chat(), 1))
            for later in (2, 3, 4):
                _, chat = ask(faulty, turn(chat, later))
                stats = faulty.engine.run(faulty.engine.idle_stats())
                assert stats["num_private_tokens"] <= LIMIT
            assert stats["num_pruner_faults"] == number
            kept = stats["mean_kept_fraction_by_age"]
            assert kept["3"] == 1.0, f"the first screenshot, after a fault in {place}"
            assert kept["2"] < 1.0, "the second has scores, and gives way"
            assert stats["num_unscored_tokens"] == NUM_VISUAL


@pytest.fixture(scope="module")
def budgeted(checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Faulty]:
    """An engine with a budget for almost three turns."""
    with faulty_engine(
        tmp_path_factory.mktemp("budgeted"), checkpoint("qwen2_5_vl"), "star", kv_token_budget=LIMIT
    ) as faulty:
        yield faulty


def test_a_branch_whose_last_turn_was_left_whole_goes_as_a_leaf(budgeted: Faulty) -> None:
    """Nobody can prune it without scores: what is scored is cut first, then SGLang's oldest leaf goes."""
    engine = budgeted.engine
    engine.flush()
    before = engine.stats()
    with budgeted.failing("room"):
        ask(budgeted, turn(Chat(), 1))
        stats = engine.run(engine.idle_stats())
        assert stats["num_unscored_tokens"] == NUM_VISUAL
        for number in range(2, 6):
            ask(budgeted, turn(Chat(), number))
            stats = engine.run(engine.idle_stats())
            assert stats["num_private_tokens"] <= LIMIT
    assert stats["num_prompts_left_whole"] - before["num_prompts_left_whole"] == 5
    assert stats["num_budget_evicted_tokens"] > before["num_budget_evicted_tokens"]
    assert stats["num_budget_misses"] == before["num_budget_misses"]
    assert stats["num_hole_tokens"] == 0
    newest = engine.answer(turn(Chat(), 5), NUM_OUTPUT)
    oldest = engine.answer(turn(Chat(), 1), NUM_OUTPUT)
    assert newest.cached > NUM_VISUAL > oldest.cached


def test_a_prompt_left_whole_does_not_put_the_step_of_its_batch_off(budgeted: Faulty) -> None:
    """It comes last in its batch, as it is what did not fit: the step is not put off until a request ends."""
    engine = budgeted.engine
    engine.flush()
    chats = [ask(budgeted, turn(Chat(), number))[1] for number in (1, 2)]
    before = engine.run(engine.idle_stats())

    async def together() -> dict[str, int]:
        async with engine.held():
            running = [await engine.queue(turn(chat, 10 + n), 200) for n, chat in enumerate(chats)]
        while (await engine.stats_soon())["num_prompts_left_whole"] == before["num_prompts_left_whole"]:
            await asyncio.sleep(0.01)
        stats = await engine.stats_soon()
        assert not any(task.done() for task in running)
        await asyncio.gather(*running)
        return stats

    with budgeted.failing("room"):
        stats = engine.run(together())
    assert before["num_private_tokens"] + 2 * NUM_VISUAL > LIMIT, "there is something to cut"
    assert stats["num_budget_steps"] > before["num_budget_steps"]
    assert stats["num_private_tokens"] <= LIMIT
