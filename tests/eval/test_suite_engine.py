"""The suite's engine: the tower's output gives the answers that the screenshots give, and a worker plays a cell."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from star_kv_sglang import cpu_mode
from star_kv_sglang.tools.eval.runner import Protocol
from star_kv_sglang.tools.eval.suite.play import Player
from star_kv_sglang.tools.eval.suite.prompts import PromptWriter
from star_kv_sglang.tools.eval.suite.questions import SuiteTask
from star_kv_sglang.tools.eval.suite.records import AGES, VISION, load_cell, open_folder
from star_kv_sglang.tools.eval.suite.served import engine_dtype
from star_kv_sglang.tools.eval.suite.variants import Cell, chosen_variants
from star_kv_sglang.tools.eval.suite.vision import load_screens, see_all
from star_kv_sglang.tools.eval.suite.worker import Spec, Step, Worker
from star_kv_sglang.tools.rollout.trajectory import Trajectory, load_trajectories, save_trajectories
from tests.engine.preloaded import kept_at_shutdown, preloaded_processes
from tests.eval.suite_cases import SETTINGS
from tests.models.checkpoints import EXAMPLE_MODEL
from tinygui.suite_questions import FIRST_SEED, suite_trajectory

pytestmark = pytest.mark.slow

CELL = Cell("star", 0.2, Protocol.PERSISTENT)


@pytest.fixture(scope="module", autouse=True)
def _needs_cpu_engine() -> None:
    if cpu_mode.is_gpu_present():
        pytest.skip("on a GPU the suite itself is the test")


@pytest.fixture(scope="module")
def one() -> Trajectory:
    return suite_trajectory(FIRST_SEED)


@pytest.fixture(scope="module")
def worker(one: Trajectory, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    """A worker with one trajectory in one cell, and its engine running."""
    folder = tmp_path_factory.mktemp("suite")
    save_trajectories([one], folder / "q.json")
    open_folder(folder, SETTINGS)
    assert list(see_all(EXAMPLE_MODEL, [one], folder / VISION, dtype=engine_dtype(), device="cpu")) == [0, 1]
    (variant,) = chosen_variants(["star"])
    steps = (Step(CELL, (one.id,)),)
    spec = Spec(str(EXAMPLE_MODEL), str(folder / "q.json"), str(folder), variant, steps, None, 1, frozenset({one.id}))
    with preloaded_processes():
        worker = Worker(spec)
    try:
        yield worker
    finally:
        with kept_at_shutdown():
            worker.engine.close()
        worker.engine.run(asyncio.sleep(0))


def test_the_towers_output_answers_as_the_screenshots_do(worker: Worker, one: Trajectory) -> None:
    """The same prompts, once with what the tower made of the screenshots and once with the screenshots."""
    writer = PromptWriter(EXAMPLE_MODEL)
    screens = load_screens(Path(worker.spec.folder) / VISION, one.id)
    player = Player(worker.engine, writer, one, screens, 1.0, "check")
    answers = worker.engine.run(player.stateless())
    pictures = [Image.open(io.BytesIO(turn.image_png)).convert("RGB") for turn in one.turns]
    history = [turn.questions[0].answer for turn in one.turns]
    for answer in answers:
        if answer.task is SuiteTask.TWO_SCREENS:
            continue
        turn, number = (int(part) for part in answer.place.split("."))
        ids = writer.ids(one, history[:turn], one.turns[turn].questions[number].text)
        assert worker.engine.ask_stock(ids, pictures[: turn + 1]) == answer.reply


def test_a_worker_plays_its_cells_and_counts_what_stays(worker: Worker, one: Trajectory) -> None:
    worker.play_all()
    folder = Path(worker.spec.folder)
    answers = load_cell(folder, CELL)[one.id]
    assert {answer.task for answer in answers} == set(SuiteTask)
    assert sum(answer.right for answer in answers) >= 0.8 * len(answers)
    kept = json.loads((folder / AGES / f"{CELL.name}.json").read_text())
    assert set(kept) == {"0", "1", "2", "3", "4"}
    assert sum(count for count, _ in kept.values()) == -(-5 * 126 // 5)
    assert load_trajectories(folder / "q.json") == [one]
