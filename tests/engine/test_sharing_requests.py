"""Who is a sharer: branches that arrive together, samples of one prompt, forks of a frontend, and no other tenant."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import pytest
import torch
from sglang.srt.managers.io_struct import GenerateReqInput

from tests.engine.conversation import COLS, NUM_VISUAL, ROWS, Answer, Chat, screenshot, turn
from tests.engine.harness import TestEngine
from tests.engine.masked_reference import drops_of

pytestmark = pytest.mark.slow

KEPT = 8
NUM_OUTPUT = 4
NUM_BRANCHES = 8


ENGINE: Final[Mapping[str, Any]] = {"kv_policy": "star-paper", "kv_budget": 0.2, "max_prefill_tokens": 128}
"""Needs several batches for eight prompts."""


def test_eight_branches_that_arrive_together_find_the_screenshot_whole(engine: TestEngine, trace: Path) -> None:
    """From a cold tree, in several batches: nobody prunes what another one that waits will read."""
    root = Chat().ask("click", screenshot(1, COLS, ROWS, 28))
    words = ("red", "blue", "green", "teal", "A", "B", "K", "x12")
    branches = [turn(Chat(f"{root.text} {word} <|im_end|>", root.images), 20 + i) for i, word in enumerate(words)]
    rids = [f"branch-{i}" for i in range(NUM_BRANCHES)]
    answers = engine.answer_together(branches, NUM_OUTPUT, rids=rids)
    for rid in rids:
        assert set(drops_of(trace, rid)) == {1}, "only its own screenshot"
    stats = engine.stats()
    assert stats["num_hole_tokens"] == NUM_BRANCHES * (NUM_VISUAL - KEPT)
    assert stats["num_shared_tokens"] >= NUM_VISUAL
    assert sum(answer.cached >= NUM_VISUAL for answer in answers) >= NUM_BRANCHES // 2, "they did share it"


def test_samples_of_one_prompt_share_it_whole(engine: TestEngine) -> None:
    """``n`` = 3: SGLang fills the cache with the prompt first, by a request that asks for no token."""
    chat = turn(Chat(), 1)
    request = GenerateReqInput(
        text=chat.text,
        image_data=list(chat.images),
        sampling_params={"n": 3, "temperature": 0, "max_new_tokens": NUM_OUTPUT, "ignore_eos": True},
    )

    async def sample() -> list[Answer]:
        results = [raw async for raw in engine.engine.tokenizer_manager.generate_request(request, None)]
        return [Answer.of(raw) for raw in results[-1]]

    answers = engine.run(sample())
    stats = engine.run(engine.idle_stats())
    assert len({answer.token_ids for answer in answers}) == 1
    assert [answer.cached for answer in answers] == [answers[0].prompt_len - 1] * 3
    assert stats["num_hole_tokens"] == 0
    engine.flush()
    assert engine.answer(chat, NUM_OUTPUT, custom_params={"kv_share": True}).token_ids == answers[0].token_ids


def test_a_prefix_that_was_cached_for_forks_is_whole(engine: TestEngine, trace: Path) -> None:
    """A frontend's fork: the common part is sent with no token to generate, then all branches."""
    root = turn(Chat(), 1)
    engine.answer(root, 0, rid="prefix")
    assert not drops_of(trace, "prefix")
    forks = [Chat(f"{root.text} {word} <|im_end|>", root.images) for word in ("red", "blue")]
    rids = ["fork-0", "fork-1"]
    answers = engine.answer_together([turn(one, 30 + i) for i, one in enumerate(forks)], NUM_OUTPUT, rids=rids)
    for rid, answer in zip(rids, answers, strict=True):
        assert answer.cached >= NUM_VISUAL
        assert set(drops_of(trace, rid)) == {1}


def test_tenants_do_not_count_as_each_others_sharers(engine: TestEngine, trace: Path) -> None:
    """The same prompts at the same moment under two keys: each is alone, prunes, and inherits only its own state."""
    first = turn(Chat(), 1)

    async def together(chats: dict[str, Chat], name: str) -> dict[str, Answer]:
        async with engine.held():
            tasks = {
                key: await engine.queue(chat, NUM_OUTPUT, rid=f"{name}-{key}", extra_key=key)
                for key, chat in chats.items()
            }
        await asyncio.gather(*tasks.values())
        return {key: task.result() for key, task in tasks.items()}

    answers = engine.run(together({"mine": first, "theirs": first}, "first"))
    assert [answer.cached for answer in answers.values()] == [0, 0]
    mine, theirs = drops_of(trace, "first-mine"), drops_of(trace, "first-theirs")
    assert set(mine) == set(theirs) == {0}, "nobody else has a part in it"
    assert torch.equal(mine[0].kept, theirs[0].kept), "and the scores are its own"
    onward = turn(first.reply(answers["mine"].text), 2)
    answers = engine.run(together({"mine": onward, "nobody": onward}, "second"))
    assert answers["mine"].cached > NUM_VISUAL
    assert answers["nobody"].cached == 0, "a new tenant starts from nothing"
    assert engine.stats()["num_shared_tokens"] == 0
