"""A window over the screenshots: those before it keep no token, the prefix stays, and answers are those of a masked
forward."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from tests.engine.conversation import Answer, Chat, question, screenshot
from tests.engine.harness import TestEngine, running_engine
from tests.engine.masked_reference import Drop, MaskedReference, read_drops, worst_difference

pytestmark = pytest.mark.slow

TOLERANCE = 1e-4
NUM_TURNS, NUM_OUTPUT = 6, 4
COLS, ROWS = 6, 6
NUM_VISUAL = COLS * ROWS
TOKEN_PIXELS = {"qwen2_vl": 28, "qwen2_5_vl": 28, "qwen3_vl": 32}


@pytest.fixture(scope="module", params=TOKEN_PIXELS)
def kind(request: pytest.FixtureRequest) -> str:
    """The model."""
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def trace(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where prunes are written."""
    return tmp_path_factory.mktemp(f"trace_{kind}")


@pytest.fixture(scope="module")
def engine(kind: str, checkpoint: Callable[[str], Path], trace: Path) -> Iterator[TestEngine]:
    """An engine that prunes nothing but what requests leave out of their windows."""
    with running_engine(
        checkpoint(kind), exact=True, kv_policy="window", policy_config={"trace_dir": str(trace)}
    ) as engine:
        yield engine


@pytest.fixture(scope="module")
def reference(kind: str, checkpoint: Callable[[str], Path]) -> MaskedReference:
    return MaskedReference(checkpoint(kind))


def play(engine: TestEngine, kind: str, name: str, num_turns: int, **wishes: object) -> list[tuple[Chat, Answer]]:
    """A conversation with a screenshot in each turn, every prompt of which is found in the tree."""
    chat, turns, hit = Chat(), [], 0
    for turn in range(num_turns):
        chat = chat.ask(question(turn), screenshot(turn, COLS, ROWS, TOKEN_PIXELS[kind]))
        answer = engine.answer(
            chat, NUM_OUTPUT, logprob_from=hit, rid=f"{name}-turn{turn}", extra_key=name, custom_params=wishes or None
        )
        assert answer.cached == hit
        turns.append((chat, answer))
        hit = found_again(engine, answer)
        chat = chat.reply(answer.text)
    return turns


def found_again(engine: TestEngine, answer: Answer) -> int:
    """How much of a prompt and its answer the next prompt begins with: words may be tokenised otherwise there."""
    words = engine.engine.tokenizer_manager.tokenizer.encode(answer.text, add_special_tokens=False)
    same = next((i for i, pair in enumerate(zip(words, answer.token_ids, strict=False)) if len(set(pair)) > 1), None)
    return answer.num_stored if same is None else min(answer.num_stored, answer.prompt_len + same)


def of_conversation(trace: Path, name: str, *, until: int = NUM_TURNS) -> list[Drop]:
    """What was dropped in the turns of a conversation up to one."""
    drops = [drop for drop in read_drops(trace) if drop.rid.startswith(f"{name}-turn")]
    return [drop for drop in drops if int(drop.rid.rpartition("turn")[2]) <= until]


@pytest.mark.parametrize("size", [1, 2])
def test_answers_are_those_of_a_forward_that_hides_what_left_the_window(
    engine: TestEngine, reference: MaskedReference, trace: Path, kind: str, size: int
) -> None:
    name = f"window{size}"
    turns = play(engine, kind, name, NUM_TURNS, kv_image_window=size, kv_return_kept=True)
    for number, (chat, answer) in enumerate(turns):
        visible = of_conversation(trace, name, until=number)
        # One screenshot leaves the window with each turn, whole.
        assert sorted({drop.frame for drop in visible}) == list(range(max(0, number + 1 - size)))
        assert {drop.kept.shape[1] for drop in visible} <= {0}
        want = reference.logprobs(chat, answer.token_ids, visible)
        assert worst_difference(answer, want, reference.prompt_ids(chat)) < TOLERANCE
        # A trainer that is told what was kept finds the same.
        assert (reference.recomputed(chat, answer) - torch.tensor(answer.logprobs)).abs().max() < TOLERANCE
        assert answer.meta["star_kv"][0]["pruned"] == len(visible) * NUM_VISUAL
    hidden = reference.logprobs(turns[-1][0], turns[-1][1].token_ids, [])
    assert worst_difference(turns[-1][1], hidden, reference.prompt_ids(turns[-1][0])) > 100 * TOLERANCE


def test_without_a_wish_nothing_is_pruned(engine: TestEngine, kind: str, trace: Path) -> None:
    turns = play(engine, kind, "none", 3)
    assert of_conversation(trace, "none") == []
    assert turns[-1][1].meta["star_kv"][0]["pruned"] == 0


def test_a_window_larger_than_the_prompt_holds_all(engine: TestEngine, kind: str, trace: Path) -> None:
    turns = play(engine, kind, "large", 3, kv_image_window=3)
    assert of_conversation(trace, "large") == []
    assert turns[-1][1].meta["star_kv"][0]["pruned"] == 0


def test_a_rest_of_what_left_the_window_stays(engine: TestEngine, kind: str, trace: Path) -> None:
    turns = play(engine, kind, "rest", 3, kv_image_window=1, kv_window_rest=0.25)
    assert {drop.kept.shape[1] for drop in of_conversation(trace, "rest")} == {NUM_VISUAL // 4}
    assert turns[-1][1].meta["star_kv"][0]["pruned"] == 2 * (NUM_VISUAL - NUM_VISUAL // 4)


def test_what_branches_share_stays_until_it_is_private(
    engine: TestEngine, reference: MaskedReference, kind: str, trace: Path
) -> None:
    _, second = play(engine, kind, "fork", 2, kv_image_window=1, kv_share=True)
    hit = second[1].num_stored
    assert of_conversation(trace, "fork") == []
    base = second[0].reply(second[1].text)
    for branch in range(2):
        pixels = TOKEN_PIXELS[kind]
        chat = base.ask(question(10 + branch), screenshot(10 + branch, COLS, ROWS, pixels))
        answer = engine.answer(
            chat, NUM_OUTPUT, logprob_from=hit, rid=f"fork{branch}-turn2", extra_key="fork",
            custom_params={"kv_image_window": 1},
        )  # fmt: skip
        assert answer.cached == hit
        assert answer.meta["star_kv"][0]["pruned"] == 0
        want = reference.logprobs(chat, answer.token_ids, [])
        assert worst_difference(answer, want, reference.prompt_ids(chat)) < TOLERANCE
        chat = chat.reply(answer.text).ask(question(20 + branch), screenshot(20 + branch, COLS, ROWS, pixels))
        later = engine.answer(
            chat, NUM_OUTPUT, logprob_from=answer.num_stored, rid=f"fork{branch}-turn3", extra_key="fork",
            custom_params={"kv_image_window": 1},
        )  # fmt: skip
        drops = of_conversation(trace, f"fork{branch}")
        assert [drop.frame for drop in drops] == [2], "its own screenshot left the window; those before it are shared"
        want = reference.logprobs(chat, later.token_ids, drops)
        assert worst_difference(later, want, reference.prompt_ids(chat)) < TOLERANCE
