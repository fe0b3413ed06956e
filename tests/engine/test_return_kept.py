"""What is returned with ``kv_return_kept`` is all that an answer has seen, whatever happened to its conversation."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import pytest
import torch

from star_kv_sglang.rl import KeptFormatError, KeptRecord, read_kept
from tests.engine.conversation import Answer, Chat, question, screenshot, turn
from tests.engine.harness import TestEngine, running_engine
from tests.engine.masked_reference import MaskedReference

pytestmark = pytest.mark.slow

ASKS: Final[Mapping[str, Any]] = {"logprob_from": -1, "custom_params": {"kv_return_kept": True}}
NUM_OUTPUT = 6
TOLERANCE = 1e-4


@pytest.fixture(scope="module", params=["budget", "token_budget"])
def kind(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def file_engine(kind: str, checkpoint: Callable[[str], Path]) -> Iterator[TestEngine]:
    bound: dict[str, Any] = {"kv_budget": 0.2} if kind == "budget" else {"kv_token_budget": 100}
    with running_engine(checkpoint("qwen2_5_vl"), exact=True, kv_policy="star-paper", **bound) as engine:
        yield engine


@pytest.fixture(scope="module")
def reference(checkpoint: Callable[[str], Path]) -> MaskedReference:
    return MaskedReference(checkpoint("qwen2_5_vl"))


def require_same(reference: MaskedReference, chat: Chat, answer: Answer) -> KeptRecord:
    """A trainer finds the engine's log-probabilities, and would not without the record."""
    logprobs = torch.tensor(answer.logprobs)
    assert (reference.recomputed(chat, answer) - logprobs).abs().max() < TOLERANCE
    record = read_kept(answer.meta)
    if record.prunes:
        assert (reference.recomputed(chat, answer, masked=False) - logprobs).abs().max() > 10 * TOLERANCE
    return record


def test_turns_with_several_screenshots_and_forks(engine: TestEngine, reference: MaskedReference) -> None:
    first = Chat().ask(question(1), screenshot(1, 6, 6, 28), screenshot(2, 5, 7, 28))
    root = engine.answer(first, NUM_OUTPUT, **ASKS)
    require_same(reference, first, root)
    second = turn(first.reply(root.text), 3)
    require_same(reference, second, answer := engine.answer(second, NUM_OUTPUT, **ASKS))
    third = turn(second.reply(answer.text), 4)
    last = require_same(reference, third, engine.answer(third, NUM_OUTPUT, **ASKS))
    assert len({(prune.start, prune.end) for prune in last.prunes}) > 1
    # A branch that goes on from the first turn, one that rewrites its answer, and the third prompt once more.
    for chat in (turn(first.reply(root.text), 5), turn(first.reply("teal here"), 6), third):
        require_same(reference, chat, engine.answer(chat, NUM_OUTPUT, **ASKS))


def test_branches_that_decode_together(engine: TestEngine, reference: MaskedReference, kind: str) -> None:
    first = turn(Chat(), 11)
    root = engine.answer(first, NUM_OUTPUT, **ASKS)
    chats = [turn(first.reply(root.text), 12 + number) for number in range(3)]

    async def staggered() -> list[Answer]:
        running = []
        for number, chat in enumerate(chats):
            running.append(await engine.queue(chat, 160 - 20 * number, **ASKS))
            await asyncio.sleep(0.15)
        return list(await asyncio.gather(*running))

    answers = engine.run(staggered())
    records = [require_same(reference, chat, answer) for chat, answer in zip(chats, answers, strict=True)]
    if kind == "token_budget":
        late = [prune for record in records for prune in record.prunes if prune.after > record.prompt_len]
        assert late, "no branch was cut while it decoded"


def test_a_request_that_was_put_back(engine: TestEngine, reference: MaskedReference) -> None:
    from sglang.srt.managers.io_struct import ContinueGenerationReqInput, PauseGenerationReqInput

    first = turn(Chat(), 21)
    root = engine.answer(first, NUM_OUTPUT, **ASKS)
    chat = turn(first.reply(root.text), 22)

    async def interrupted() -> Answer:
        running = await engine.queue(chat, 250, **ASKS)
        await asyncio.sleep(0.3)
        send = engine.engine.tokenizer_manager._async_dispatch_to_scheduler
        await send(PauseGenerationReqInput(mode="retract"))
        await asyncio.sleep(0.05)
        await send(ContinueGenerationReqInput())
        return await running

    answer = engine.run(interrupted())
    assert answer.retractions == 1
    try:
        read_kept(answer.meta)
    except KeptFormatError as error:
        assert "put back into the queue" in str(error)
        return
    require_same(reference, chat, answer)


def test_what_cannot_be_told_says_why(engine: TestEngine) -> None:
    chat = Chat()
    for number in range(4):
        chat = turn(chat, 31 + number)
        chat = chat.reply(engine.answer(chat, NUM_OUTPUT).text)
    answer = engine.answer(turn(chat, 36), NUM_OUTPUT, **ASKS)
    with pytest.raises(KeptFormatError, match="before a request of its conversation asked"):
        read_kept(answer.meta)


def test_nothing_is_returned_unless_it_is_asked_for(engine: TestEngine) -> None:
    answer = engine.answer(turn(Chat(), 41), NUM_OUTPUT)
    assert [set(entry) for entry in answer.meta["star_kv"]] == [{"live", "pruned", "shared", "cuts"}]
    with pytest.raises(KeptFormatError, match="kv_return_kept"):
        read_kept(answer.meta)


def test_a_stream_ends_with_it(engine: TestEngine, reference: MaskedReference) -> None:
    from sglang.srt.managers.io_struct import GenerateReqInput

    chat = turn(Chat(), 51)
    request = GenerateReqInput(
        text=chat.text,
        image_data=list(chat.images),
        sampling_params={
            "temperature": 0,
            "max_new_tokens": 5,
            "ignore_eos": True,
            "custom_params": ASKS["custom_params"],
        },
        return_logprob=True,
        stream=True,
    )

    async def chunks() -> list[dict[str, Any]]:
        return [raw async for raw in engine.engine.tokenizer_manager.generate_request(request, None)]

    *_, last = engine.run(chunks())
    require_same(reference, chat, Answer.of(last))
