"""The engine that serves on a GPU (FlashInfer, CUDA graphs, overlap, bfloat16), with pages of several sizes.

bfloat16 is compared with a float32 reference by the size of an effect: what a wrong mask changes is many times what the
format's rounding changes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.engine.conversation import Answer, Chat, question, screenshot
from tests.engine.harness import running_engine
from tests.engine.masked_reference import Drop, MaskedReference, read_drops, worst_difference

pytestmark = [pytest.mark.gpu, pytest.mark.slow]

NUM_TURNS = 3
NUM_OUTPUT = 5
SIZES = ((12, 12), (14, 11), (16, 9))
MOST_NOISE = 0.1
"""Of the effect of the masks."""


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
            hit = answer.prompt_len + NUM_OUTPUT
            done.chats.append(chat)
            done.answers.append(answer)
            chat = chat.reply(answer.text)
        stats = engine.run(engine.idle_stats())
        assert stats["num_skipped_segments"] == 0
        assert stats["num_hole_tokens"] > 0
    done.drops.extend(read_drops(trace))
    return done


@pytest.fixture(scope="module")
def reference(played: Played, checkpoint: Callable[[str], Path]) -> MaskedReference:
    del played  # one reference at a time
    return MaskedReference(checkpoint("qwen2_5_vl"))


def test_whole_pages_of_every_screenshot_are_dropped(played: Played) -> None:
    for number, (cols, rows) in enumerate(SIZES):
        newest = [drop for drop in played.drops if drop.rid == f"turn{number}" and drop.frame == number]
        assert newest
        for drop in newest:
            assert drop.start % played.page_size == drop.end % played.page_size == 0
            assert drop.kept.shape[1] % played.page_size == 0
        assert sum(drop.end - drop.start for drop in newest) > cols * rows - 2 * played.page_size * len(newest)


@pytest.mark.parametrize("number", range(NUM_TURNS), ids=lambda number: f"turn{number + 1}")
def test_equals_a_forward_with_masks_but_for_rounding(played: Played, reference: MaskedReference, number: int) -> None:
    chat, answer = played.chats[number], played.answers[number]
    seen = [drop for drop in played.drops if int(drop.rid.removeprefix("turn")) <= number]
    ids = reference.prompt_ids(chat)
    effect = worst_difference(answer, reference.logprobs(chat, answer.token_ids, []), ids)
    want = reference.logprobs(chat, answer.token_ids, seen)
    assert worst_difference(answer, want, ids) < MOST_NOISE * effect
    first = answer.prompt_len - 1
    for place, token in enumerate(answer.token_ids, first):
        assert float(want[place].max() - want[place, token]) < MOST_NOISE * effect
