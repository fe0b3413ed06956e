"""Branches: full hits after pruning, prefixes that stay whole while shared, inheritance at a fork, isolation."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

import pytest
import torch

from tests.engine.conversation import COLS, NUM_VISUAL, ROWS, Answer, Chat, screenshot, turn
from tests.engine.harness import TestEngine
from tests.engine.masked_reference import MaskedReference, drops_of, read_drops, worst_difference

pytestmark = pytest.mark.slow

BUDGET = 0.2
NUM_OUTPUT = 4


ENGINE: Final[Mapping[str, Any]] = {
    "exact": True,
    "kv_policy": "star-paper",
    "kv_budget": BUDGET,
    "policy_config": {
        "prior_warmup_steps": 0,
        "prior_ramp_steps": 1,
        "prior_lambda": 1.0,
        "temporal": True,
    },
    "max_prefill_tokens": 64,
}
"""The prior and the temporal discount work from the second screenshot on, so strongly that they tell branches apart."""


def num_text(answer: Answer, num_frames: int) -> int:
    """Tokens of prompt and answer that are not visual."""
    return answer.prompt_len + len(answer.token_ids) - num_frames * NUM_VISUAL


def test_next_turn_hits_the_full_logical_prefix(engine: TestEngine) -> None:
    chat, hit = Chat(), 0
    for number in range(4):
        chat = turn(chat, number)
        answer = engine.answer(chat, NUM_OUTPUT)
        assert answer.cached == hit
        hit = answer.num_stored
        chat = chat.reply(answer.text)
    assert engine.stats()["num_hole_tokens"] > 0


def test_pool_holds_the_budget_of_visual_tokens_and_the_text(engine: TestEngine) -> None:
    chat = Chat()
    for number in range(1, 5):
        chat = turn(chat, number)
        answer = engine.answer(chat, NUM_OUTPUT)
        chat = chat.reply(answer.text)
        stats = engine.stats()
        limit = math.ceil(BUDGET * number * NUM_VISUAL) + num_text(answer, number)
        assert stats["num_used_pool_tokens"] <= limit
        assert stats["num_used_pool_tokens"] == stats["num_live_tokens"]
        assert stats["num_live_tokens"] + stats["num_hole_tokens"] == answer.num_stored


def test_branches_that_run_together_share_the_screenshot_whole(engine: TestEngine, trace: Path) -> None:
    """Neither of the two, queued at the same moment, prunes what the other one still reads."""
    root = Chat().ask("click", screenshot(1, COLS, ROWS, 28))
    branches = [Chat(f"{root.text} {answer} <|im_end|>", root.images) for answer in ("red A", "blue B")]
    rids = ["together-0", "together-1"]
    engine.answer_together([turn(branch, 20 + i) for i, branch in enumerate(branches)], NUM_OUTPUT, rids=rids)
    for rid in rids:
        assert set(drops_of(trace, rid)) == {1}
    stats = engine.stats()
    own = math.ceil(BUDGET * NUM_VISUAL)
    assert stats["num_hole_tokens"] == 2 * (NUM_VISUAL - own)
    assert stats["num_shared_tokens"] >= NUM_VISUAL


def test_screenshot_stays_whole_while_the_other_branch_may_come_back(engine: TestEngine, trace: Path) -> None:
    root = Chat().ask("click", screenshot(1, COLS, ROWS, 28))
    branches = [Chat(f"{root.text} {answer} <|im_end|>", root.images) for answer in ("red A", "blue B")]
    chats = [turn(branch, 20 + i) for i, branch in enumerate(branches)]
    answers = engine.answer_together(chats, NUM_OUTPUT, rids=["back-0", "back-1"])
    later = turn(chats[0].reply(answers[0].text), 30)
    answer = engine.answer(later, NUM_OUTPUT, rid="back-0-again")
    assert answer.cached == answers[0].num_stored
    assert set(drops_of(trace, "back-0-again")) <= {1, 2}
    assert 2 in drops_of(trace, "back-0-again")


def test_two_identical_prompts_are_two_branches(engine: TestEngine, trace: Path) -> None:
    """One of them goes on; the screenshot stays whole for the other one, which may come back."""
    first = turn(Chat(), 1)
    answers = engine.answer_together([first, first], NUM_OUTPUT, rids=["twin-0", "twin-1"])
    assert not drops_of(trace, "twin-0")
    assert not drops_of(trace, "twin-1")
    one = turn(first.reply(answers[0].text), 2)
    answer = engine.answer(one, NUM_OUTPUT, rid="twin-0-turn2")
    assert set(drops_of(trace, "twin-0-turn2")) == {1}
    engine.answer(turn(one.reply(answer.text), 3), NUM_OUTPUT, rid="twin-0-turn3")
    assert set(drops_of(trace, "twin-0-turn3")) == {1, 2}


def test_fork_inherits_the_state(engine: TestEngine, trace: Path) -> None:
    """A branch that forks after two turns keeps what an unforked one keeps, and not what one with less memory keeps.

    The history is pinned, so that all of them choose from the newest screenshot only and under the same quota. The
    screenshots are so wide that several tokens share a position bin: otherwise all heads weigh the same.
    """
    wide_turn = partial(turn, cols=24, rows=2)
    whole = {"custom_params": {"kv_share": True}}
    first = wide_turn(Chat(), 1)
    second = wide_turn(first.reply(engine.answer(first, NUM_OUTPUT, **whole).text), 2)
    history = second.reply(engine.answer(second, NUM_OUTPUT, **whole).text)
    alone = engine.answer(wide_turn(history, 3), NUM_OUTPUT, rid="serial")

    engine.flush()
    engine.answer(first, NUM_OUTPUT, **whole)
    engine.answer(second, NUM_OUTPUT, **whole)
    other = engine.answer(wide_turn(history, 4), NUM_OUTPUT, rid="other-branch")
    forked = engine.answer(wide_turn(history, 3), NUM_OUTPUT, rid="forked")

    engine.flush()
    engine.answer(second, NUM_OUTPUT, **whole)
    forgetful = engine.answer(wide_turn(history, 3), NUM_OUTPUT, rid="saw-one-prompt")

    assert alone.cached == other.cached == forgetful.cached < forked.cached
    assert forked.token_ids == alone.token_ids
    kept = {rid: drops_of(trace, rid)[2].kept for rid in ("serial", "other-branch", "forked", "saw-one-prompt")}
    assert torch.equal(kept["forked"], kept["serial"])
    assert not torch.equal(kept["other-branch"], kept["serial"])
    assert not torch.equal(kept["saw-one-prompt"], kept["serial"])


def test_branches_that_decode_together_see_only_what_is_left_to_them(
    engine: TestEngine, trace: Path, checkpoint: Callable[[str], Path]
) -> None:
    """Two forks of a pruned history, one of which prunes in the middle of the other's decoding, against masks."""
    reference = MaskedReference(checkpoint("qwen2_5_vl"))
    first = turn(Chat(), 1)
    root = engine.answer(first, NUM_OUTPUT, rid="root")
    history = first.reply(root.text)
    chats = [turn(history, 40), turn(history, 41)]
    hit = root.num_stored
    answers = engine.answer_together(chats, 24, rids=["fork-0", "fork-1"], logprob_from=hit)
    past = [drop for drop in read_drops(trace) if drop.rid == "root"]
    for number, (chat, answer) in enumerate(zip(chats, answers, strict=True)):
        own = [drop for drop in read_drops(trace) if drop.rid == f"fork-{number}"]
        assert len(own) == 1
        assert answer.cached >= hit
        want = reference.logprobs(chat, answer.token_ids, [*past, *own])
        first_output = answer.prompt_len - 1
        assert want[first_output:-1].argmax(-1).tolist() == list(answer.token_ids)
        assert worst_difference(answer, want, reference.prompt_ids(chat)) < 1e-4


def test_kv_share_keeps_the_prefix_whole(engine: TestEngine, trace: Path) -> None:
    first = turn(Chat(), 1)
    answer = engine.answer(first, NUM_OUTPUT, rid="pinned-1", custom_params={"kv_share": True})
    assert engine.stats()["num_hole_tokens"] == 0
    engine.answer(turn(first.reply(answer.text), 2), NUM_OUTPUT, rid="pinned-2")
    assert not drops_of(trace, "pinned-1")
    assert set(drops_of(trace, "pinned-2")) == {1}


def test_pruned_prefix_is_invisible_under_another_key(engine: TestEngine) -> None:
    first = turn(Chat(), 1)
    mine = engine.answer(first, NUM_OUTPUT, extra_key="mine")
    theirs = engine.answer(first, NUM_OUTPUT, extra_key="theirs")
    nobody = engine.answer(first, NUM_OUTPUT)
    assert (mine.cached, theirs.cached, nobody.cached) == (0, 0, 0)
    assert mine.token_ids == theirs.token_ids == nobody.token_ids
    second = turn(first.reply(mine.text), 2)
    assert engine.answer(second, NUM_OUTPUT, extra_key="mine").cached == mine.num_stored
    assert engine.answer(second, NUM_OUTPUT, extra_key="nobody yet").cached == 0
