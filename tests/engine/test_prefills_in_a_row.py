"""Prefills that follow each other: the GPU goes on with the next while the host prunes the prompts of the last."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from star_kv_sglang.engine.policy_engine import PolicyEngine
from tests.engine.conversation import Answer, Chat, question, screenshot
from tests.engine.harness import TestEngine, running_engine
from tests.engine.masked_reference import read_drops

NUM_BRANCHES, NUM_TURNS = 3, 2


@pytest.mark.parametrize(
    ("is_extend", "decoding", "token_budget", "waits"),
    [
        pytest.param(True, [], False, False, id="prefill"),
        pytest.param(True, ["one"], False, True, id="prefill and decoding rows"),
        pytest.param(False, None, False, True, id="decode"),
        pytest.param(None, None, False, True, id="nothing"),
        pytest.param(True, [], True, True, id="prefill under a token budget"),
    ],
)
@pytest.mark.parametrize("awaits", [True, False], ids=["scored", "not scored"])
def test_what_waits_for_a_prune(
    monkeypatch: pytest.MonkeyPatch,
    is_extend: bool | None,
    decoding: Any,
    token_budget: bool,
    waits: bool,
    awaits: bool,
) -> None:
    engine = PolicyEngine.__new__(PolicyEngine)
    engine._has_token_budget = token_budget
    engine._requests = SimpleNamespace(any_scored=awaits)  # type: ignore[assignment]
    mode = SimpleNamespace(is_extend=lambda: is_extend)
    batch: Any = None if is_extend is None else SimpleNamespace(forward_mode=mode, decoding_reqs=decoding)
    assert engine.must_prune_before(batch) is (waits and awaits)


def hold(engine: TestEngine, trace: Path, *, together: bool) -> tuple[list[list[Answer]], list[Any]]:
    """All branches take their turns, one by one or at the same moment."""

    async def ask(chats: Sequence[Chat], turn: int) -> list[Answer]:
        names = [f"{number}.{turn}" for number in range(NUM_BRANCHES)]
        if not together:
            return [
                await engine.answer_soon(chat, 4, logprob_from=0, rid=rid)
                for chat, rid in zip(chats, names, strict=True)
            ]
        async with engine.held():
            tasks = [
                await engine.queue(chat, 4, logprob_from=0, rid=rid) for chat, rid in zip(chats, names, strict=True)
            ]
        return list(await asyncio.gather(*tasks))

    chats, answers = [Chat(f"w{number} ") for number in range(NUM_BRANCHES)], []
    for turn in range(NUM_TURNS):
        chats = [
            chat.ask(question(turn), screenshot(10 * number + turn, 6, 6, 28)) for number, chat in enumerate(chats)
        ]
        answers.append(engine.run(ask(chats, turn)))
        chats = [chat.reply("red") for chat in chats]
    return answers, sorted((drop.rid, drop.start, drop.kept.tolist()) for drop in read_drops(trace))


@pytest.mark.gpu  # SGLang overlaps nothing on a CPU
def test_answers_and_choices_are_those_of_prompts_that_come_alone(
    checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    held = []
    for together in (False, True):
        trace = tmp_path / str(together)
        with running_engine(
            checkpoint("qwen2_5_vl"), exact=True, kv_policy="star", kv_budget=0.3, prefill_max_requests=1,
            policy_config={"trace_dir": str(trace)},
        ) as engine:  # fmt: skip
            held.append(hold(engine, trace, together=together))
    (alone, kept_alone), (together_answers, kept) = held
    for turn, other in zip(alone, together_answers, strict=True):
        assert [one.token_ids for one in turn] == [one.token_ids for one in other]
    assert kept == kept_alone
    assert len(kept) >= NUM_BRANCHES * NUM_TURNS - 1
