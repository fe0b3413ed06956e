"""With a budget of 1.0 the engine is SGLang: the same ids and log-probabilities, bit by bit, on hits too."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.engine.conversation import Answer, Chat, question, screenshot
from tests.engine.harness import TestEngine, running_engine

pytestmark = pytest.mark.slow

NUM_CHATS = 20
NUM_TURNS = 3
NUM_OUTPUT = 4


Run = tuple[list[list[Answer]], dict[str, Any]]


@pytest.fixture(scope="module")
def stock_run(checkpoint: Callable[[str], Path]) -> Run:
    """Stock SGLang: the policy ``full``."""
    return converse(checkpoint("qwen2_5_vl"), kv_policy="full")


@pytest.fixture(scope="module")
def star_run(checkpoint: Callable[[str], Path]) -> Run:
    """The policy that may keep everything."""
    return converse(checkpoint("qwen2_5_vl"), kv_policy="star", kv_budget=1.0)


@pytest.fixture(scope="module")
def stock(stock_run: Run) -> list[list[Answer]]:
    return stock_run[0]


@pytest.fixture(scope="module")
def star(star_run: Run) -> list[list[Answer]]:
    return star_run[0]


def converse(model: Path, **policy: Any) -> Run:
    """All conversations, one request at a time, as a batch's composition changes floats; and the engine's state."""
    chats: list[list[Answer]] = []
    with running_engine(model, **policy) as engine:
        for number in range(NUM_CHATS):
            forked_from = chats[-1][0] if is_fork(number) else None
            chats.append(one_chat(engine, number, forked_from))
        return chats, engine.state()


def is_fork(number: int) -> bool:
    """Whether a conversation starts with the same first turn as the one before it."""
    return number % 4 == 3


def one_chat(engine: TestEngine, number: int, forked_from: Answer | None) -> list[Answer]:
    """Turns with one or two screenshots each, and the log-probabilities of everything that no hit covers."""
    chat, answers = Chat(), []
    hit = forked_from.prompt_len - 1 if forked_from is not None else 0
    for turn in range(NUM_TURNS):
        origin = number - 1 if forked_from is not None and turn == 0 else number
        seed = 10 * origin + turn
        images = [screenshot(seed + 1000 * i, 3 + seed % 4, 2 + seed % 3, 28) for i in range(1 + (origin + turn) % 2)]
        chat = chat.ask(question(seed, 2 + origin % 5), *images)
        answer = engine.answer(chat, NUM_OUTPUT, logprob_from=hit)
        answers.append(answer)
        hit = answer.num_stored
        chat = chat.reply(answer.text)
    return answers


def test_engine_is_stock_with_the_policy_full(stock_run: Run, star_run: Run) -> None:
    state, control = stock_run[1], star_run[1]
    assert ("star_kv" in state, "star_kv" in control) == (False, True)
    assert (state["radix_cache_backend"], control["radix_cache_backend"]) == (None, "star_kv")


def test_nothing_is_observed_or_pruned_when_everything_may_stay(star_run: Run) -> None:
    stats = star_run[1]["star_kv"]
    assert (stats["num_scored_prompts"], stats["num_prunes"], stats["num_hole_tokens"]) == (0, 0, 0)


def test_token_ids_are_identical(stock: list[list[Answer]], star: list[list[Answer]]) -> None:
    assert [[a.token_ids for a in chat] for chat in star] == [[a.token_ids for a in chat] for chat in stock]


def test_output_logprobs_are_identical(stock: list[list[Answer]], star: list[list[Answer]]) -> None:
    assert all(len(a.logprobs) == NUM_OUTPUT for chat in star for a in chat)
    assert [[a.logprobs for a in chat] for chat in star] == [[a.logprobs for a in chat] for chat in stock]


def test_prompt_logprobs_are_identical(stock: list[list[Answer]], star: list[list[Answer]]) -> None:
    assert all(len(a.input_logprobs) == a.prompt_len - a.cached for chat in star for a in chat)
    assert [[a.input_logprobs for a in chat] for chat in star] == [[a.input_logprobs for a in chat] for chat in stock]


def test_hits_are_the_same_and_reach_the_end_of_the_turn_before(
    stock: list[list[Answer]], star: list[list[Answer]]
) -> None:
    assert [[a.cached for a in chat] for chat in star] == [[a.cached for a in chat] for chat in stock]
    for number, chat in enumerate(star):
        assert chat[0].cached == (chat[0].prompt_len - 1 if is_fork(number) else 0)
        for before, after in pairwise(chat):
            assert after.cached == before.num_stored
