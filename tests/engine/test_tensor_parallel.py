"""Two ranks on a CPU: each holds half of the key heads, and both keep what one rank alone would keep."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from star_kv_sglang import cpu_mode
from tests.engine.conversation import Answer, Chat, question, screenshot
from tests.engine.faulty import Faulty, faulty_engine
from tests.engine.harness import EngineDied, TestEngine
from tests.engine.machine import environment
from tests.engine.masked_reference import Drop, MaskedReference, read_drops, worst_difference

ON_A_CPU = pytest.mark.skipif(
    cpu_mode.is_gpu_present(), reason="a test's process has one GPU; tests/gpu/parity.py has engines of two"
)
pytestmark = [pytest.mark.slow, ON_A_CPU]

TOLERANCE = 1e-4
NUM_TURNS, NUM_OUTPUT = 3, 4
RANKS = {
    # SGLang binds the threads of each rank on a CPU to processors, one NUMA node a rank where nothing is said.
    "SGLANG_CPU_OMP_THREADS_BIND": "0|0",
    # It takes a library of NCCL for a GPU.
    "SGLANG_NCCL_SO_PATH": "none",
}
SETUP = {"exact": True, "kv_budget": 0.3}
# The question chooses half of what stays, so that both saliencies are looked at: distances, and attention of all heads.
POLICY = {"question_share": 0.5}


def play(engine: TestEngine) -> list[tuple[Chat, Answer]]:
    """A conversation with a new screenshot in each turn, and two in the last."""
    chat, turns, hit = Chat(), [], 0
    for number in range(NUM_TURNS):
        screens = [screenshot(number, 6, 6, 28)] + [screenshot(9, 6, 6, 28)] * (number == NUM_TURNS - 1)
        chat = chat.ask(question(number), *screens)
        answer = engine.answer(chat, NUM_OUTPUT, logprob_from=hit, rid=f"turn{number}")
        turns.append((chat, answer))
        hit, chat = answer.num_stored, chat.reply(answer.text)
    return turns


@pytest.fixture(scope="module")
def faulty(checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Faulty]:
    folder = tmp_path_factory.mktemp("ranks")
    policy = {**POLICY, "trace_dir": str(folder / "traces")}
    with (
        environment(RANKS),
        faulty_engine(folder, checkpoint("qwen2_5_vl"), "star", tp_size=2, policy_config=policy, **SETUP) as faulty,
    ):
        yield faulty


@pytest.fixture(scope="module")
def held(faulty: Faulty) -> tuple[list[tuple[Chat, Answer]], list[Drop]]:
    return play(faulty.engine), read_drops(faulty.traces)


def test_answers_are_those_of_a_forward_with_masks(
    held: tuple[list[tuple[Chat, Answer]], list[Drop]], checkpoint: Callable[[str], Path]
) -> None:
    reference = MaskedReference(checkpoint("qwen2_5_vl"))
    turns, drops = held
    for number, (chat, answer) in enumerate(turns):
        visible = [drop for drop in drops if drop.rid <= f"turn{number}"]
        want = reference.logprobs(chat, answer.token_ids, visible)
        assert worst_difference(answer, want, reference.prompt_ids(chat)) < TOLERANCE
    assert {drop.rid for drop in drops} == {f"turn{number}" for number in range(NUM_TURNS)}
    assert len(drops) == len({(drop.rid, drop.frame) for drop in drops}), "one rank writes traces"


def test_both_know_the_same_tree(faulty: Faulty, held: object) -> None:
    stats = faulty.engine.run(faulty.engine.idle_stats())
    assert stats["num_pruner_faults"] == 0 and stats["num_pruned_tokens"] > 0


def test_a_rank_that_decides_otherwise_stops_the_server(faulty: Faulty, held: object) -> None:
    """The last test of this engine."""
    with faulty.failing("diverge"), pytest.raises(EngineDied):
        faulty.engine.answer(Chat().ask(question(7), screenshot(7, 6, 6, 28)), NUM_OUTPUT, rid="odd-turn")
    log = faulty.log.read_text(encoding="utf-8", errors="replace")
    told = re.search(r"decided differently in the turn of request odd-turn .*rank 0: (\w+ \w+); rank 1: (\w+ \w+)", log)
    assert told is not None and told[1] != told[2]
