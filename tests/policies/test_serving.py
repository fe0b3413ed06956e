"""Every policy serves: a conversation on the real engine, pruned to the token, with the answers of what stays.

Those that other engine tests run at every turn (``tests/engine/test_masked_reference.py``), and one more, are nightly.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import pytest

from star_kv_sglang.engine.telemetry import MERGED
from star_kv_sglang.policies import policy_names
from tests.engine.conversation import Answer, Chat, question, screenshot
from tests.engine.harness import running_engine
from tests.engine.masked_reference import MaskedReference, read_drops, worst_difference
from tests.models.checkpoints import EXAMPLE_MODEL

pytestmark = pytest.mark.slow

NO_MASK = {"lookm": {"merge": "none"}}
"""Settings under which a mask says what a policy does."""
ALWAYS = {"guikv", "random", "vlcache"}
COLS, ROWS, TOKEN_PIXELS = 10, 8, 32
NUM_VISUAL = COLS * ROWS
NUM_OUTPUT = 2
BUDGET, OWN_BUDGET = 0.2, 0.1
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Turn:
    """A prompt, the answer, and the pool's live tokens behind it."""

    chat: Chat
    answer: Answer
    num_live: int


def play(policy: str, trace: Path, config: dict[str, str] | None = None) -> list[Turn]:
    """Three turns with a screenshot each; the last asks for a budget of its own."""
    turns, chat, hit = [], Chat(), 0
    with running_engine(
        EXAMPLE_MODEL,
        exact=True,
        kv_policy=policy,
        kv_budget=BUDGET,
        policy_config={"trace_dir": str(trace), **(NO_MASK.get(policy, {}) if config is None else config)},
    ) as engine:
        for number, budget in enumerate((BUDGET, BUDGET, OWN_BUDGET)):
            chat = chat.ask(question(number), screenshot(number, COLS, ROWS, TOKEN_PIXELS))
            answer = engine.answer(
                chat,
                NUM_OUTPUT,
                logprob_from=hit,
                rid=f"turn{number}",
                custom_params={"kv_budget": budget, "kv_return_kept": True},
            )
            assert answer.cached == hit
            hit = answer.num_stored
            turns.append(Turn(chat, answer, engine.stats()["num_live_tokens"]))
            chat = chat.reply(answer.text)
        untraced = Chat().ask(question(9), screenshot(9, COLS, ROWS, TOKEN_PIXELS))
        engine.answer(untraced, NUM_OUTPUT, rid="untraced", custom_params={"kv_trace": False})
        assert engine.stats()["num_skipped_segments"] == 0
    return turns


@pytest.mark.parametrize(
    "policy",
    [pytest.param(name, marks=() if name in ALWAYS else pytest.mark.nightly) for name in policy_names()],
)
def test_serves_a_conversation(policy: str, tmp_path: Path) -> None:
    turns = play(policy, tmp_path)
    drops = read_drops(tmp_path)
    assert {drop.rid for drop in drops} == {"turn0", "turn1", "turn2"}
    reference = MaskedReference(EXAMPLE_MODEL)
    for number, (turn, budget) in enumerate(zip(turns, (BUDGET, BUDGET, OWN_BUDGET), strict=True), start=1):
        num_text = turn.answer.num_stored - number * NUM_VISUAL
        assert turn.num_live == num_text + math.ceil(budget * (number * NUM_VISUAL))
        seen = [drop for drop in drops if int(drop.rid.removeprefix("turn")) < number]
        want = reference.logprobs(turn.chat, turn.answer.token_ids, seen)
        assert worst_difference(turn.answer, want, reference.prompt_ids(turn.chat)) < TOLERANCE


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("policy", "config"), [("lookm", {}), ("star", {"merge": "averaged"}), ("snapkv", {"merge": "weighted"})]
)
def test_pairs_are_merged_while_it_serves(policy: str, config: dict[str, str], tmp_path: Path) -> None:
    """As many tokens stay, other answers come of them, and a trainer is told that no mask says why."""
    merged = play(policy, tmp_path / "merged", config)
    dropped = play(policy, tmp_path / "dropped", {"merge": "none"})
    assert [turn.num_live for turn in merged] == [turn.num_live for turn in dropped]
    assert merged[0].answer.logprobs[0] == dropped[0].answer.logprobs[0]
    assert merged[-1].answer.logprobs != dropped[-1].answer.logprobs
    record = merged[-1].answer.meta["star_kv"][-1]["kept"]
    assert record == {"version": 1, "complete": False, "reason": MERGED}
