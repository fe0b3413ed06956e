"""The whole of it on a server: the small model is told to be served as its labels say, and a killed run goes on."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from star_kv_sglang import cpu_mode
from star_kv_sglang.cli.main import main
from star_kv_sglang.tools.bench.serve.server import GPU_ARGUMENTS
from star_kv_sglang.tools.cli.tune import ADVICE_FILE, PAGE, run
from star_kv_sglang.tools.eval.runner import Protocol
from star_kv_sglang.tools.eval.samples import TaskKind
from star_kv_sglang.tools.rollout.scoring import is_correct
from star_kv_sglang.tools.rollout.trajectory import Trajectory, save_trajectories
from star_kv_sglang.tools.tune.actions import answer_reader
from star_kv_sglang.tools.tune.advice import Advice
from star_kv_sglang.tools.tune.asking import Asker, Heard, Prompt, Token
from star_kv_sglang.tools.tune.conduct import Plan, Watcher, conduct
from star_kv_sglang.tools.tune.prompts import PromptWriter
from star_kv_sglang.tools.tune.recordings import Thread
from star_kv_sglang.tools.tune.records import FULL, CellTurn, FullTurn, read_turns, turn_file
from star_kv_sglang.tools.tune.replay import Replay
from star_kv_sglang.tools.tune.threads import load_threads
from tests.engine.preloaded_server import preloaded_serving
from tests.models.checkpoints import EXAMPLE_MODEL
from tinygui.language import QuestionMix
from tinygui.trajectories import generate

pytestmark = pytest.mark.slow

SEED, TURNS = 70_000, 4
FLAGS = ("--max-total-tokens", "20000", "--skip-server-warmup")
CELLS = ("star-20", "streaming-20")


class KilledError(Exception):
    """As if somebody had ended the process."""


class KillAfter(Watcher):
    """Ends a run in the middle of a cell."""

    def __init__(self, turns: int) -> None:
        self._left = turns

    def turn(self, name: str, same: bool) -> None:
        self._left -= 1
        if not self._left:
            raise KilledError


class Refusals(Watcher):
    """Remembers what was left out."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str]] = []

    def refused(self, thread: str, reason: str) -> None:
        self.seen.append((thread, reason))


@dataclass
class Servers:
    """A policy's server, kept until another policy's is asked for."""

    stack: ExitStack
    url: str = ""
    asked: list[str] = field(default_factory=list)

    def __call__(self, flags: Sequence[str], log: Path) -> AbstractContextManager[str]:
        policy = flags[flags.index("--kv-policy") + 1]
        if self.asked[-1:] != [policy]:
            self.stack.close()
            self.url = self.stack.enter_context(preloaded_serving(flags, log))
        self.asked.append(policy)
        return nullcontext(self.url)


@dataclass(frozen=True)
class Tuned:
    """What a run has left."""

    trajectories: Sequence[Trajectory]
    plan: Plan
    replay: Replay
    servers: Servers
    advice: Advice


def recorded(folder: Path, count: int) -> list[Trajectory]:
    """Trajectories that ask about earlier screens from the second turn on."""
    made = [
        generate(SEED + n, num_turns=TURNS, questions_per_turn=1, mix=QuestionMix(0.2, 0.8, 0)) for n in range(count)
    ]
    save_trajectories(made, folder / "q.json")
    return made


def planned(folder: Path, model: Path, budgets: tuple[float, ...]) -> tuple[Plan, Replay]:
    threads = tuple(load_threads(folder / "q.json"))
    plan = Plan(str(model), threads, ("star", "streaming"), budgets, False, FLAGS, 120.0)
    reader = answer_reader("small", TaskKind.COMPUTER)
    writer = PromptWriter(str(model))
    return plan, Replay(folder / "out", writer, reader, Protocol.PERSISTENT, 0.04, 8, at_a_time=2, pictures=2)


def asked(folder: Path) -> dict[str, Any]:
    """What the command would say of how turns are replayed."""
    recordings, computer = str(folder / "q.json"), TaskKind.COMPUTER.value
    return {
        "recordings": recordings, "agent": "small", "kind": computer, "tolerance": 0.04, "protocol": "persistent",
        "max_tokens": 8,
    }  # fmt: skip


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tuned]:
    """A run that was killed in the middle of the second cell and began anew."""
    folder = tmp_path_factory.mktemp("tune")
    made = recorded(folder, 2)
    plan, replay = planned(folder, EXAMPLE_MODEL, (0.2,))
    with ExitStack() as stack:
        servers = Servers(stack)
        with pytest.raises(KilledError):
            conduct(plan, replay, servers, KillAfter(len(made) * TURNS + 3))
        advice = run(plan, replay, asked(folder), 0.05, servers, Console(quiet=True))
        yield Tuned(made, plan, replay, servers, advice)


def right(tuned: Tuned, cell: str) -> float:
    """Share of a cell's answers that the labels call right."""
    kind: type[Any] = FullTurn if cell == FULL else CellTurn
    rows = {(row.thread, row.turn): row.text for row in read_turns(turn_file(tuned.replay.folder, cell), kind)}
    questions = {
        (thread.name, turn): one.turns[turn].questions[0]
        for thread, one in zip(tuned.plan.threads, tuned.trajectories, strict=True)
        for turn in range(TURNS)
    }
    assert set(rows) == set(questions)
    return sum(is_correct(question, rows[place]) for place, question in questions.items()) / len(questions)


def test_it_advises_what_the_labels_advise(tuned: Tuned) -> None:
    """Labels that the run has not seen: within the bound `star` loses nothing of the full cache's, the other does."""
    shares = {cell: right(tuned, cell) for cell in (FULL, *CELLS)}
    assert shares["star-20"] >= shares[FULL] - 0.05 > shares["streaming-20"]
    assert tuned.advice.chosen is not None
    assert tuned.advice.chosen.cell.name == "star-20"
    streaming = tuned.advice.outcomes[1]
    assert streaming.cell.name == "streaming-20"
    assert streaming.loss >= 0.25
    assert streaming.kl is not None
    assert tuned.advice.chosen.kl is not None
    assert streaming.kl.mean > 10 * tuned.advice.chosen.kl.mean
    assert tuned.advice.knows_ages
    assert streaming.held.mean == pytest.approx(tuned.advice.chosen.held.mean) != 1.0


def test_every_turn_of_every_cell_has_one_line_although_the_run_was_killed(tuned: Tuned) -> None:
    assert tuned.servers.asked == ["star", "star", "streaming"]
    for cell in CELLS:
        places = [(row.thread, row.turn) for row in read_turns(turn_file(tuned.replay.folder, cell), CellTurn)]
        assert sorted(places) == [(thread.name, turn) for thread in tuned.plan.threads for turn in range(TURNS)]


def test_the_command_on_what_is_complete_starts_no_server_and_says_the_flags(
    tuned: Tuned, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tuned.replay.folder
    words = ["--model-path", tuned.plan.model, "--trajectories", str(folder.parent / "q.json"), "--out", str(folder)]
    words += ["--policies", "star,streaming", "--budgets", "0.2", "--max-loss", "0.05", "--agent", "small"]
    before = len(tuned.servers.asked)
    assert main(["tune", *words, "--max-tokens", "8", "--no-control", *FLAGS]) == 0
    said = capsys.readouterr().out
    assert f"star-kv serve --model-path {tuned.plan.model} --kv-policy star --kv-budget 0.2 {' '.join(FLAGS)}" in said
    assert "star at 20% changes 0.0% of the actions" in said
    assert len(tuned.servers.asked) == before


def test_the_page_shows_the_advice_and_pictures_of_changed_turns(tuned: Tuned) -> None:
    page = (tuned.replay.folder / PAGE).read_text(encoding="utf-8")
    command = "star-kv serve --model-path"
    assert f"<pre>{command}" in page
    assert "--kv-policy star --kv-budget 0.2" in page
    assert len(re.findall(r"<h3>streaming-20: q-\d+, turn \d</h3>", page)) == 2
    assert page.count('<img src="data:image/png;base64,') >= 4
    assert "http://" not in page
    advice = json.loads((tuned.replay.folder / ADVICE_FILE).read_text(encoding="utf-8"))
    assert advice["chosen"]["cell"] == {"policy": "star", "budget": 0.2, "name": "star-20"}
    assert not list((tuned.replay.folder / "servers" / "streaming.traces").iterdir())


def test_an_answer_that_is_put_behind_its_prompt_gets_the_log_probabilities_of_saying_it(tuned: Tuned) -> None:
    """Under a full cache, and under a pruned one from the second token on, which is computed after the prune."""
    turn = tuned.plan.threads[0].turns[0]
    ids = tuned.replay.writer.ids(turn, {})
    images = tuple(picture.data_url() for picture in turn.pictures)

    async def both(budget: float) -> tuple[Heard, tuple[Token, ...] | None]:
        prompt = Prompt(ids, images, f"check-{budget}", f"check-{budget}", budget)
        async with Asker(tuned.servers.url, 120.0) as asker:
            heard = await asker.hear(prompt, 8, [5])
            return heard, await asker.hear_said(prompt, heard.ids, heard.prompt)

    for budget in (1.0, 0.2):
        heard, said = asyncio.run(both(budget))
        assert said is not None
        assert [token.id for token in said] == list(heard.ids[1:])
        assert [token.logprob for token in said] == pytest.approx([one.logprob for one in heard.tokens[1:]], abs=1e-3)
        assert (heard.live < heard.prompt) == (budget < 1)
        assert set(heard.asked) == {5}


def test_a_thread_that_the_server_refuses_is_left_out_and_told(tuned: Tuned, tmp_path: Path) -> None:
    """Its prompt is longer than the pool; the other one is compared."""
    good, long = tuned.plan.threads[0], tuned.plan.threads[1].turns[0]
    said = replace(long.said[0], parts=(*(long.said[0].parts or ()), " click" * 30_000))
    threads = (replace(good, turns=good.turns[:1]), Thread("long", (replace(long, said=(said,)),)))
    told = Refusals()
    plan = replace(tuned.plan, threads=threads, policies=("streaming",))
    conduct(plan, replace(tuned.replay, folder=tmp_path), tuned.servers, told)
    assert [name for name, _ in told.seen] == ["long"]
    assert "full: long, turn 1: the server answered 400" in told.seen[0][1]
    assert [row.thread for row in read_turns(turn_file(tmp_path, "streaming-20"), CellTurn)] == [good.name]


@pytest.mark.gpu
@pytest.mark.skipif(not cpu_mode.is_gpu_present(), reason="needs a GPU")
@pytest.mark.parametrize("model", [EXAMPLE_MODEL, EXAMPLE_MODEL.with_name("model2")], ids=["model", "model2"])
def test_both_small_models_are_tuned_on_a_gpu(model: Path, tmp_path: Path) -> None:
    recorded(tmp_path, 20)
    plan, replay = planned(tmp_path, model, (0.2, 0.1))
    plan = replace(plan, control=True, arguments=GPU_ARGUMENTS)
    advice = run(plan, replay, asked(tmp_path), 0.05, preloaded_serving, Console(quiet=True))
    assert advice.chosen is not None
    assert advice.chosen.cell.policy == "star"
    assert advice.control is not None
    assert advice.control.loss <= 0.02
