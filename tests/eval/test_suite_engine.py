"""The suite's engine: the tower's output gives the answers that the screenshots give, and a worker plays a cell."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from star_kv_sglang import cpu_mode
from star_kv_sglang.tools.eval.runner import Protocol
from star_kv_sglang.tools.eval.suite import worker as worker_module
from star_kv_sglang.tools.eval.suite.play import Player
from star_kv_sglang.tools.eval.suite.prompts import PromptWriter
from star_kv_sglang.tools.eval.suite.questions import SuiteTask
from star_kv_sglang.tools.eval.suite.records import AGES, VISION, load_cell, open_folder
from star_kv_sglang.tools.eval.suite.served import MAX_NEW_TOKENS, empty_cache, engine_dtype, start_engine
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
def replies_to_pictures() -> dict[str, str]:
    """By the question's place, what the engine has answered to the screenshots themselves; filled as it starts."""
    return {}


@pytest.fixture(scope="module")
def worker(
    one: Trajectory, replies_to_pictures: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Worker]:
    """A worker with one trajectory in one cell, and its engine running."""
    folder = tmp_path_factory.mktemp("suite")
    save_trajectories([one], folder / "q.json")
    open_folder(folder, SETTINGS)
    assert list(see_all(EXAMPLE_MODEL, [one], folder / VISION, dtype=engine_dtype(), device="cpu")) == [0, 1]
    (variant,) = chosen_variants(["star"])
    steps = (Step(CELL, (one.id,)),)
    spec = Spec(str(EXAMPLE_MODEL), str(folder / "q.json"), str(folder), variant, steps, None, 1, frozenset({one.id}))

    def start_and_ask(model: Path, **arguments: Any) -> Any:
        """Before the suite puts itself in place of the engine's image processor."""
        engine = start_engine(model, **arguments)
        replies_to_pictures.update(_ask_about_pictures(engine, one))
        empty_cache(engine)
        return engine

    with preloaded_processes(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(worker_module, "start_engine", start_and_ask)
        worker = Worker(spec)
    try:
        yield worker
    finally:
        with kept_at_shutdown():
            worker.engine.close()
        worker.engine.run(asyncio.sleep(0))


def _ask_about_pictures(engine: Any, one: Trajectory) -> dict[str, str]:
    """The replies to all questions of a trajectory, each with the screenshots up to its turn and nothing pruned."""
    writer = PromptWriter(EXAMPLE_MODEL)
    pictures = [Image.open(io.BytesIO(turn.image_png)).convert("RGB") for turn in one.turns]
    history = [turn.questions[0].answer for turn in one.turns]
    sampling = {"temperature": 0, "max_new_tokens": MAX_NEW_TOKENS, "custom_params": {"kv_budget": 1.0}}
    replies = {}
    for number, turn in enumerate(one.turns):
        for index, question in enumerate(turn.questions):
            ids = list(writer.ids(one, history[:number], question.text))
            answer = engine.generate(input_ids=ids, image_data=pictures[: number + 1], sampling_params=sampling)
            replies[f"{number}.{index}"] = answer["text"].strip()
    return replies


def test_the_towers_output_answers_as_the_screenshots_do(
    worker: Worker, replies_to_pictures: dict[str, str], one: Trajectory
) -> None:
    """The same prompts, once with what the tower made of the screenshots and once with the screenshots."""
    writer = PromptWriter(EXAMPLE_MODEL)
    screens = load_screens(Path(worker.spec.folder) / VISION, one.id)
    player = Player(worker.engine, writer, one, screens, 1.0, "check")
    answers = worker.engine.run(player.stateless())
    asked = [answer for answer in answers if answer.task is not SuiteTask.TWO_SCREENS]
    assert len(asked) >= len(one.turns)
    assert [(answer.place, answer.reply) for answer in asked] == [
        (answer.place, replies_to_pictures[answer.place]) for answer in asked
    ]


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
