"""The engine that serves on a GPU (FlashInfer, CUDA graphs, overlap, bfloat16), with pages of several sizes.

bfloat16 is compared with a float32 reference. How far rounding alone may lead is measured: transformers computes the
same masked forward in bfloat16 too. What a wrong mask changes is many times that.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from tests.engine.conversation import Answer, Chat, question, screenshot
from tests.engine.harness import running_engine
from tests.engine.masked_reference import Drop, MaskedReference, read_drops, worst_difference

pytestmark = [pytest.mark.gpu, pytest.mark.slow]

NUM_TURNS = 3
NUM_OUTPUT = 5
SIZES = ((12, 12), (14, 11), (16, 9))
MOST_NOISE = 3.0
"""Times the worst rounding of transformers' own bfloat16 forward: other kernels round at other places."""


@dataclass(frozen=True)
class Played:
    """Three turns of one conversation.

    Attributes:
        chats: Their prompts.
        answers: What the engine said.
        drops: What it dropped.
    """

    page_size: int
    chats: list[Chat]
    answers: list[Answer]
    drops: list[Drop]


@pytest.fixture(
    scope="module",
    params=[{"page_size": 1}, {"page_size": 16}, {"page_size": 64, "chunked_prefill_size": 128}],
    ids=["pages_of_1", "pages_of_16", "pages_of_64-chunks"],
)
def played(
    request: pytest.FixtureRequest, checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Played:
    arguments: dict[str, int] = request.param
    trace = tmp_path_factory.mktemp("trace")
    done = Played(arguments["page_size"], [], [], [])
    chat = Chat()
    with running_engine(
        checkpoint("qwen2_5_vl"),
        kv_policy="star",
        kv_budget=0.4,
        policy_config={"trace_dir": str(trace)},
        max_total_tokens=4096,
        **arguments,
    ) as engine:
        hit = 0
        for turn, (cols, rows) in enumerate(SIZES):
            chat = chat.ask(question(turn), screenshot(turn, cols, rows, 28))
            answer = engine.answer(chat, NUM_OUTPUT, logprob_from=hit, rid=f"turn{turn}")
            assert answer.cached == hit // done.page_size * done.page_size
            hit = answer.num_stored
            done.chats.append(chat)
            done.answers.append(answer)
            chat = chat.reply(answer.text)
        stats = engine.run(engine.idle_stats())
        assert stats["num_skipped_segments"] == 0
        assert stats["num_hole_tokens"] > 0
    done.drops.extend(read_drops(trace))
    return done


@dataclass(frozen=True)
class Expected:
    """What transformers says to one turn.

    Attributes:
        prompt_ids: The prompt's tokens.
        hidden: Log-probabilities with the dropped tokens hidden, float32 [T, vocabulary].
        whole: The same with nothing hidden.
        rounded: As ``hidden``, computed in bfloat16.
    """

    prompt_ids: list[int]
    hidden: torch.Tensor
    whole: torch.Tensor
    rounded: torch.Tensor

    def rounding(self, answer: Answer) -> float:
        """Worst difference of the two formats over what the answer reports."""
        first = answer.prompt_len - 1
        places = [(first + place, token) for place, token in enumerate(answer.token_ids)]
        start = answer.prompt_len - len(answer.input_logprobs)
        for position, (_, token) in enumerate(answer.input_logprobs[1:], start + 1):
            if self.prompt_ids[position] == token:
                places.append((position - 1, token))
        rows, tokens = torch.tensor(places).T
        return float((self.hidden[rows, tokens] - self.rounded[rows, tokens]).abs().max())


@pytest.fixture(scope="module")
def expected(played: Played, checkpoint: Callable[[str], Path]) -> list[Expected]:
    exact, rounded = (MaskedReference(checkpoint("qwen2_5_vl"), dtype) for dtype in (torch.float32, torch.bfloat16))
    turns = []
    for number, (chat, answer) in enumerate(zip(played.chats, played.answers, strict=True)):
        seen = [drop for drop in played.drops if int(drop.rid.removeprefix("turn")) <= number]
        turns.append(
            Expected(
                exact.prompt_ids(chat),
                exact.logprobs(chat, answer.token_ids, seen),
                exact.logprobs(chat, answer.token_ids, []),
                rounded.logprobs(chat, answer.token_ids, seen),
            )
        )
    return turns


def test_whole_pages_of_every_screenshot_are_dropped(played: Played) -> None:
    for number, (cols, rows) in enumerate(SIZES):
        newest = [drop for drop in played.drops if drop.rid == f"turn{number}" and drop.frame == number]
        assert newest
        for drop in newest:
            assert drop.start % played.page_size == drop.end % played.page_size == 0
            assert drop.kept.shape[1] % played.page_size == 0
        assert sum(drop.end - drop.start for drop in newest) > cols * rows - 2 * played.page_size * len(newest)


@pytest.mark.parametrize("number", range(NUM_TURNS), ids=lambda number: f"turn{number + 1}")
def test_equals_a_forward_with_masks_but_for_rounding(played: Played, expected: list[Expected], number: int) -> None:
    answer, want = played.answers[number], expected[number]
    rounding = max(turn.rounding(one) for turn, one in zip(expected, played.answers, strict=True))
    assert worst_difference(answer, want.hidden, want.prompt_ids) < MOST_NOISE * rounding
    assert worst_difference(answer, want.whole, want.prompt_ids) > MOST_NOISE * rounding, (
        "the masks would not be missed"
    )
    first = answer.prompt_len - 1
    for place, token in enumerate(answer.token_ids, first):
        assert float(want.hidden[place].max() - want.hidden[place, token]) < MOST_NOISE * rounding
