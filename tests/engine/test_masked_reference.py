"""At a budget of 0.2 the engine equals a transformers forward in which each layer's dropped tokens are masked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from star_kv_sglang.rl import read_kept
from tests.engine.conversation import Answer, Chat, question, screenshot
from tests.engine.harness import running_engine
from tests.engine.masked_reference import Drop, MaskedReference, read_drops, worst_difference

pytestmark = pytest.mark.slow

TOLERANCE = 1e-4
NUM_TURNS = 3


@dataclass(frozen=True)
class Case:
    """One conversation: a model, the screenshots' sizes in tokens, and the engine's arguments."""

    model: str
    sizes: tuple[tuple[int, int], ...]
    token_pixels: int
    num_output: int = 5
    engine: tuple[tuple[str, Any], ...] = ()
    policy: str = "star-paper"
    ages: bool = True
    """A screenshot that was pruned once goes on losing tokens to newer ones."""

    def chat_image(self, turn: int) -> Image.Image:
        """The screenshot of a turn."""
        cols, rows = self.sizes[turn]
        return screenshot(turn, cols, rows, self.token_pixels)


CASES = {
    "qwen2_5_vl": Case("qwen2_5_vl", ((6, 6), (7, 5), (5, 8)), 28),
    "qwen2_5_vl-chunks_cut_screenshots": Case(
        "qwen2_5_vl", ((6, 6), (7, 5), (5, 8)), 28, engine=(("chunked_prefill_size", 23),)
    ),
    "qwen2_vl": Case("qwen2_vl", ((6, 6), (7, 5), (5, 8)), 28),
    "qwen3_vl": Case("qwen3_vl", ((6, 6), (7, 5), (5, 8)), 32),
    "qwen3_vl_moe": Case("qwen3_vl_moe", ((6, 6), (7, 5), (5, 8)), 32, policy="star", ages=False),
    "qwen2_5_vl-star": Case("qwen2_5_vl", ((6, 6), (7, 5), (5, 8)), 28, policy="star", ages=False),
    "qwen2_5_vl-keeps-peaks": Case("qwen2_5_vl", ((6, 6), (7, 5), (5, 8)), 28, policy="distinct", ages=False),
    "qwen2_5_vl-sums-attention-over-chunks": Case(
        "qwen2_5_vl", ((6, 6), (7, 5), (5, 8)), 28, engine=(("chunked_prefill_size", 23),), policy="h2o", ages=False
    ),
    "qwen2_5_vl-per-head": Case("qwen2_5_vl", ((9, 8), (7, 5), (5, 8)), 28, policy="snapkv"),
    # Its answers are two words and then the end of the turn.
    "trained": Case("tinygui", ((14, 9), (14, 9), (14, 9)), 32, num_output=2),
}


@dataclass(frozen=True)
class Turn:
    """A prompt, what the engine answered, and what is known of the pool."""

    chat: Chat
    answer: Answer


@pytest.fixture(scope="module", params=list(CASES.values()), ids=list(CASES))
def played(
    request: pytest.FixtureRequest, checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Case, list[Turn], list[Drop]]:
    """Three turns, each with another screenshot, and everything that was dropped."""
    case: Case = request.param
    trace = tmp_path_factory.mktemp("trace")
    chat, turns = Chat(), []
    with running_engine(
        checkpoint(case.model),
        exact=True,
        kv_policy=case.policy,
        kv_budget=0.2,
        policy_config={"trace_dir": str(trace)},
        **dict(case.engine),
    ) as engine:
        hit = 0
        for turn in range(NUM_TURNS):
            chat = chat.ask(question(turn), case.chat_image(turn))
            answer = engine.answer(
                chat, case.num_output, logprob_from=hit, rid=f"turn{turn}", custom_params={"kv_return_kept": True}
            )
            assert answer.cached == hit
            turns.append(Turn(chat, answer))
            hit = answer.num_stored
            chat = chat.reply(answer.text)
        assert engine.stats()["num_skipped_segments"] == 0
    return case, turns, read_drops(trace)


def traced(drop: Drop) -> tuple[int, int, int, bytes]:
    """What a trace tells of a prune, in terms of what is returned."""
    kept = np.zeros((len(drop.kept), drop.end - drop.start), np.bool_)
    np.put_along_axis(kept, drop.kept.numpy() - drop.start, True, axis=1)
    return drop.start, drop.end, drop.after, kept.tobytes()


@pytest.fixture(scope="module")
def reference(played: tuple[Case, list[Turn], list[Drop]], checkpoint: Callable[[str], Path]) -> MaskedReference:
    return MaskedReference(checkpoint(played[0].model))


def test_every_turn_prunes_the_newest_screenshot_and_a_later_turn_an_earlier_one(
    played: tuple[Case, list[Turn], list[Drop]],
) -> None:
    case, turns, drops = played
    for number, turn in enumerate(turns):
        newest = [drop for drop in drops if drop.rid == f"turn{number}" and drop.frame == number]
        cols, rows = case.sizes[number]
        assert sum(drop.end - drop.start for drop in newest) == cols * rows
        assert len(newest) == 1 if not case.engine else len(newest) > 1
        assert {drop.after for drop in newest} == {turn.answer.prompt_len}
    if case.ages:
        assert any(drop.frame < int(drop.rid.removeprefix("turn")) for drop in drops)


def test_units_keep_the_same_number_of_other_tokens(played: tuple[Case, list[Turn], list[Drop]]) -> None:
    _, _, drops = played
    assert all((drop.kept.diff(dim=1) > 0).all() for drop in drops)
    assert any(not torch.equal(drop.kept[0], drop.kept[1]) for drop in drops)


@pytest.mark.parametrize("number", range(NUM_TURNS), ids=lambda number: f"turn{number + 1}")
def test_equals_a_forward_with_masks(
    played: tuple[Case, list[Turn], list[Drop]], reference: MaskedReference, number: int
) -> None:
    _, turns, drops = played
    turn = turns[number]
    visible = [drop for drop in drops if int(drop.rid.removeprefix("turn")) <= number]
    want = reference.logprobs(turn.chat, turn.answer.token_ids, visible)
    assert turn.answer.prompt_len == len(want) - len(turn.answer.token_ids)
    first = turn.answer.prompt_len - 1
    assert want[first:-1].argmax(-1).tolist() == list(turn.answer.token_ids)
    assert worst_difference(turn.answer, want, reference.prompt_ids(turn.chat)) < TOLERANCE


@pytest.mark.parametrize("number", range(NUM_TURNS), ids=lambda number: f"turn{number + 1}")
def test_a_trainer_computes_the_log_probabilities_with_what_was_returned(
    played: tuple[Case, list[Turn], list[Drop]], reference: MaskedReference, number: int
) -> None:
    _, turns, drops = played
    turn = turns[number]
    answer = turn.answer
    returned = read_kept(answer.meta)
    seen = [drop for drop in drops if drop.after < returned.length - 1]
    assert {traced(drop) for drop in seen} == {
        (prune.start, prune.end, prune.after, prune.kept.tobytes()) for prune in returned.prunes
    }
    assert (returned.prompt_len, returned.length) == (answer.prompt_len, answer.prompt_len + len(answer.token_ids))
    logprobs = torch.tensor(answer.logprobs)
    assert (reference.recomputed(turn.chat, answer) - logprobs).abs().max() < TOLERANCE


@pytest.mark.parametrize("number", range(NUM_TURNS), ids=lambda number: f"turn{number + 1}")
def test_differs_from_a_forward_without_masks(
    played: tuple[Case, list[Turn], list[Drop]], reference: MaskedReference, number: int
) -> None:
    """The control: what was dropped matters, so the test above can fail."""
    _, turns, _ = played
    turn = turns[number]
    want = reference.logprobs(turn.chat, turn.answer.token_ids, [])
    assert worst_difference(turn.answer, want, reference.prompt_ids(turn.chat)) > 100 * TOLERANCE
