"""Errors in the scorer and the pruner, injected into a running engine: the request stays whole, and nothing is lost."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from tests.engine import injected_faults
from tests.engine.conversation import Answer, Chat, question, screenshot
from tests.engine.harness import TestEngine, running_engine
from tests.engine.masked_reference import read_drops

pytestmark = pytest.mark.slow

COLS, ROWS = 6, 6
NUM_VISUAL = COLS * ROWS
NUM_OUTPUT = 4
KEPT = 8
"""A fifth of the visual tokens."""


@dataclass
class Faulty:
    """An engine, the switch of its faults, and what it prints."""

    engine: TestEngine
    switch: Path
    log: Path
    traces: Path

    @contextmanager
    def failing(self, word: str) -> Iterator[None]:
        """Calls of one place fail while the block runs."""
        self.switch.write_text(word, encoding="utf-8")
        yield
        self.switch.write_text("", encoding="utf-8")

    def num_logged(self, words: str) -> int:
        """How often the log says this."""
        return self.log.read_text(encoding="utf-8", errors="replace").count(words)


@contextmanager
def faulty_engine(folder: Path, model: Path, **arguments: object) -> Iterator[Faulty]:
    """An engine into whose scheduler faults can be injected."""
    shutil.copyfile(str(injected_faults.__file__), folder / "injected_faults.py")
    metadata = folder / "injected_faults-0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: injected-faults\nVersion: 0\n", encoding="utf-8")
    entry = "[sglang.srt.plugins]\ninjected_faults = injected_faults:register\n"
    (metadata / "entry_points.txt").write_text(entry, encoding="utf-8")
    switch, log = folder / "switch", folder / "log"
    switch.write_text("", encoding="utf-8")
    with ExitStack() as stack:
        # Processes that are spawned take over this one's path, and find the plugin on it.
        with pytest.MonkeyPatch.context() as patch, printing_to(log):
            patch.syspath_prepend(folder)
            patch.setenv("INJECTED_FAULTS", str(switch))
            engine = stack.enter_context(
                running_engine(model, kv_policy="star-paper", log_level="warning", **arguments)
            )
        yield Faulty(engine, switch, log, folder / "traces")


@contextmanager
def printing_to(log: Path) -> Iterator[None]:
    """Processes that are started in the block write their errors to a file."""
    sys.stderr.flush()
    before = os.dup(2)
    with log.open("wb") as file:
        os.dup2(file.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(before, 2)
        os.close(before)


@pytest.fixture(scope="module")
def shared(checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Faulty]:
    folder = tmp_path_factory.mktemp("faults")
    config = {"trace_dir": str(folder / "traces")}
    with faulty_engine(folder, checkpoint("qwen2_5_vl"), kv_budget=0.2, policy_config=config) as faulty:
        yield faulty


@pytest.fixture
def faulty(shared: Faulty) -> Iterator[Faulty]:
    """The engine with an empty tree; afterwards no slot is lost."""
    shared.engine.flush()
    yield shared
    shared.engine.run(shared.engine.idle_stats())
    shared.engine.flush()
    assert shared.engine.run(shared.engine.idle_stats())["num_used_pool_tokens"] == 0


def turn(chat: Chat, seed: int) -> Chat:
    """The conversation with another screenshot and question."""
    return chat.ask(question(seed), screenshot(seed, COLS, ROWS, 28))


def ask(faulty: Faulty, chat: Chat, rid: str | None = None) -> tuple[Answer, Chat]:
    """One turn."""
    answer = faulty.engine.answer(chat, NUM_OUTPUT, rid=rid)
    return answer, chat.reply(answer.text)


@pytest.mark.parametrize(
    ("place", "step"),
    [
        pytest.param("score", "scoring a batch", id="while_scoring"),
        pytest.param("choose", "scoring a batch", id="while_choosing"),
        pytest.param("prune", "pruning a prompt", id="before_pruning"),
        pytest.param("move", "pruning a prompt", id="before_tokens_move"),
    ],
)
def test_a_fault_costs_the_request_its_pruning_only(faulty: Faulty, place: str, step: str) -> None:
    before = faulty.engine.stats()
    with faulty.failing(place):
        answer, chat = ask(faulty, turn(Chat(), 1))
        again, chat = ask(faulty, turn(chat, 2))
        after = faulty.engine.stats()
    assert after["num_hole_tokens"] == 0
    assert after["num_pruner_faults"] - before["num_pruner_faults"] == 2
    assert again.cached == answer.prompt_len + NUM_OUTPUT, "the unpruned prompt is in the tree"
    assert faulty.num_logged(f"ValueError: injected into {place}") == 1, "logged once, with its traceback"
    assert faulty.num_logged(f"{step} failed") >= 1
    ask(faulty, turn(chat, 3))
    later = faulty.engine.stats()
    assert later["num_pruner_faults"] == after["num_pruner_faults"]
    assert later["num_hole_tokens"] == 3 * NUM_VISUAL - 22, "the next turn prunes all that is private: a fifth stays"


def test_answers_do_not_depend_on_a_fault_before_them(faulty: Faulty) -> None:
    """What a prompt that stayed whole by a fault leaves in the tree is what a prompt that is kept by request leaves."""
    first, share = turn(Chat(), 1), {"kv_share": True}
    whole = faulty.engine.answer(first, NUM_OUTPUT, custom_params=share)
    expected = faulty.engine.answer(turn(first.reply(whole.text), 2), NUM_OUTPUT, custom_params=share)
    faulty.engine.flush()
    with faulty.failing("move"):
        unpruned, chat = ask(faulty, first)
        assert unpruned.token_ids == whole.token_ids
        assert ask(faulty, turn(chat, 2))[0].token_ids == expected.token_ids


def test_scores_that_are_no_numbers_give_way_to_recency(faulty: Faulty) -> None:
    before = faulty.engine.stats()
    with faulty.failing("nan"):
        _, chat = ask(faulty, turn(Chat(), 1), rid="spoiled")
        stats = faulty.engine.stats()
    assert stats["num_recency_fallbacks"] - before["num_recency_fallbacks"] == 1
    assert stats["num_pruner_faults"] == before["num_pruner_faults"]
    assert stats["num_hole_tokens"] == NUM_VISUAL - KEPT, "the budget holds"
    (drop,) = [drop for drop in read_drops(faulty.traces) if drop.rid == "spoiled"]
    newest = torch.arange(drop.end - KEPT, drop.end)
    assert all(torch.equal(torch.as_tensor(layer).sort().values, newest) for layer in drop.kept)
    ask(faulty, turn(chat, 2))
    later = faulty.engine.stats()
    assert later["num_recency_fallbacks"] == stats["num_recency_fallbacks"], "for that turn only"
    assert faulty.num_logged("scores are not a number") == 1


def test_where_the_token_budget_cannot_be_cut_leaves_are_dropped(
    checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    with faulty_engine(tmp_path, checkpoint("qwen2_5_vl"), kv_token_budget=150) as faulty:
        with faulty.failing("budget"):
            for seed in range(6):
                ask(faulty, turn(Chat(), seed))
            stats = faulty.engine.run(faulty.engine.idle_stats())
        assert stats["num_pruner_faults"] > 0
        assert stats["num_budget_evicted_tokens"] > 0
        assert stats["num_private_tokens"] <= 150
        assert faulty.num_logged("ValueError: injected into budget") == 1
