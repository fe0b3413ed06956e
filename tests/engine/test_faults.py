"""Bad requests and aborts: an error for that request, no slot lost, and the engine goes on."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from star_kv_sglang import cpu_mode
from tests.engine.conversation import Answer, Chat, question, screenshot
from tests.engine.harness import TestEngine, running_engine

pytestmark = pytest.mark.slow

POOL = 320
CONTEXT = 400


def small_prompt(seed: int) -> Chat:
    return Chat().ask(question(seed), screenshot(seed, 4, 4, 28))


def long_prompt(num_visual_rows: int) -> Chat:
    """About 12 tokens for each row."""
    return Chat().ask(question(1), screenshot(1, 12, num_visual_rows, 28))


KINDS = ("exact", "serving") if cpu_mode.is_gpu_present() else ("exact",)
"""Engines that must survive all of this; on a CPU there is one."""


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    """Which engine it is."""
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def shared_engine(checkpoint: Callable[[str], Path], kind: str) -> Iterator[TestEngine]:
    """An engine whose pool is smaller than its context, with chunks smaller than a screenshot."""
    with running_engine(
        checkpoint("qwen2_5_vl"),
        exact=kind == "exact",
        kv_policy="star",
        kv_budget=0.2,
        max_total_tokens=POOL,
        context_length=CONTEXT,
        chunked_prefill_size=8,
    ) as engine:
        yield engine


@pytest.fixture
def engine(shared_engine: TestEngine) -> Iterator[TestEngine]:
    """The engine with an empty tree; afterwards it must own no slot that the tree does not know, and still answer."""
    shared_engine.flush()
    yield shared_engine
    shared_engine.run(shared_engine.idle_stats())
    assert len(shared_engine.answer(small_prompt(99), 2).token_ids) == 2
    shared_engine.flush()
    assert shared_engine.run(shared_engine.idle_stats())["num_used_pool_tokens"] == 0


def test_prompt_without_image_is_never_pruned(engine: TestEngine) -> None:
    chat = Chat().ask(question(1, 30))
    answer = engine.answer(chat)
    again = engine.answer(chat.reply(answer.text).ask(question(2, 5)))
    stats = engine.stats()
    assert again.cached == answer.num_stored
    assert (stats["num_hole_tokens"], stats["num_prunes"]) == (0, 0)


@pytest.mark.parametrize(
    ("chat", "limit"),
    [
        pytest.param(Chat().ask(question(1, CONTEXT + 1)), CONTEXT, id="text_longer_than_the_context"),
        pytest.param(Chat().ask(question(1, POOL + 1)), POOL, id="text_longer_than_the_pool"),
        pytest.param(long_prompt(29), POOL, id="screenshot_larger_than_the_pool"),
    ],
)
def test_prompt_that_does_not_fit_is_refused(engine: TestEngine, chat: Chat, limit: int) -> None:
    with pytest.raises(ValueError, match=r"longer than|too long|exceeds") as caught:
        engine.answer(chat)
    numbers = [int(number) for number in re.findall(r"\d+", str(caught.value))]
    assert any(limit - 10 <= number <= limit for number in numbers), caught.value


def test_abort_in_the_middle_of_a_chunked_prefill(engine: TestEngine) -> None:
    before = engine.stats()

    async def play() -> Answer:
        task = await engine.queue(long_prompt(20), 4, rid="mid-prefill")
        while (await engine.stats_soon())["num_used_pool_tokens"] < 30:
            await asyncio.sleep(0)
        engine.abort("mid-prefill")
        return await task

    answer: Answer = engine.run(play())
    assert answer.reason["type"] == "abort"
    stats = engine.run(engine.idle_stats())
    assert stats["num_scored_prompts"] == before["num_scored_prompts"]
    assert stats["num_hole_tokens"] == 0


def test_abort_in_the_middle_of_decoding(engine: TestEngine) -> None:
    before = engine.stats()

    async def play() -> Answer:
        task = await engine.queue(small_prompt(1), 200, rid="mid-decode")
        while (await engine.stats_soon())["num_prunes"] == before["num_prunes"]:
            await asyncio.sleep(0)
        engine.abort("mid-decode")
        return await task

    answer: Answer = engine.run(play())
    assert answer.reason["type"] == "abort"
    assert len(answer.token_ids) < 200


def test_abort_in_the_queue(engine: TestEngine) -> None:
    async def play() -> Answer:
        async with engine.held():
            task = await engine.queue(small_prompt(1), 4, rid="queued")
            engine.abort("queued")
        return await task

    answer: Answer = engine.run(play())
    assert answer.reason["type"] == "abort"


def test_same_prompt_after_its_abort_gives_the_same_answer(engine: TestEngine, kind: str) -> None:
    """What an aborted prefill leaves in the tree is as good as what a whole one computes.

    The second prefill is cut elsewhere: in bfloat16 its answer may differ, and is only as long.
    """
    chat = long_prompt(15)
    want = engine.answer(chat)
    engine.flush()

    async def play() -> Answer:
        task = await engine.queue(chat, 4, rid="first-try")
        while (await engine.stats_soon())["num_used_pool_tokens"] < 40:
            await asyncio.sleep(0)
        engine.abort("first-try")
        return await task

    assert engine.run(play()).reason["type"] == "abort"
    again = engine.answer(chat)
    assert len(again.token_ids) == len(want.token_ids)
    assert again.token_ids == want.token_ids or kind == "serving"


def test_more_requests_than_the_pool_holds_all_end_well(engine: TestEngine) -> None:
    chats = [Chat().ask(question(seed), screenshot(seed, 6, 6, 28)) for seed in range(12)]
    answers = engine.answer_together(chats, 40)
    assert [len(answer.token_ids) for answer in answers] == [40] * len(chats)


def test_beam_search_is_the_clients_mistake(engine: TestEngine) -> None:
    """Its other rows are copies of a row that may be pruned, and no request knows them."""
    with pytest.raises(ValueError, match=r"Beam search .* is not supported with a --kv-policy that prunes"):
        engine.answer(small_prompt(1), 4, beam_width=2, n=2)
