"""What the suite asks, and of what."""

from __future__ import annotations

from pathlib import Path

import pytest

from star_kv_sglang.policies import REFUSED, policy_names
from star_kv_sglang.tools.eval.errors import EvalError
from star_kv_sglang.tools.eval.runner import Protocol
from star_kv_sglang.tools.eval.suite.questions import SuiteTask, follow_up, load_questions, task_of
from star_kv_sglang.tools.eval.suite.variants import ABLATIONS, POLICIES, Cell, Variant, cells_of, chosen_variants
from star_kv_sglang.tools.rollout.trajectory import (
    LabelledBox,
    Question,
    Trajectory,
    TrajectoryFileError,
    save_trajectories,
)
from tests.eval.suite_cases import recall, trajectory

NOW = (LabelledBox((0, 0, 40, 40), "red", "A"), LabelledBox((80, 80, 32, 32), "blue", "B"))


@pytest.mark.parametrize(
    ("question", "task"),
    [
        (Question("click red A here", "x2 y2", (0, 0, 40, 40), 0, False), SuiteTask.CLICK),
        (Question("read x2 y2 here", "red A", (0, 0, 40, 40), 0, False), SuiteTask.READ),
        (recall("x2 y2", back=3, moved=False), SuiteTask.STILL),
        (recall("x2 y2", back=3, moved=True), SuiteTask.MOVED),
    ],
    ids=lambda value: value.value if isinstance(value, SuiteTask) else "",
)
def test_a_question_has_a_task(question: Question, task: SuiteTask) -> None:
    assert task_of(question) is task


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        pytest.param(
            recall("x30 y30", label="blue B", moved=True),
            Question("click blue B here", "x12 y12", (80, 80, 32, 32), 0, False),
            id="it_stands_elsewhere",
        ),
        pytest.param(recall("x30 y30", label="pink Z", moved=True), None, id="it_is_gone"),
        pytest.param(recall("x2 y2", label="red A", moved=False), None, id="it_has_not_moved"),
        pytest.param(Question("recall everything", "x2 y2", (0, 0, 9, 9), 1, True), None, id="it_names_no_widget"),
    ],
)
def test_where_a_moved_widget_is_now_is_asked_too(question: Question, expected: Question | None) -> None:
    assert follow_up(question, NOW) == expected


def test_a_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "q.json"
    save_trajectories([trajectory(1), trajectory(2)], path)
    assert [one.id for one in load_questions(path)] == [1, 2]


def _last_turn_looks(one: Trajectory) -> Trajectory:
    return Trajectory(one.id, one.turns[:2])


@pytest.mark.parametrize(
    ("made", "reason"),
    [
        pytest.param([trajectory(1), trajectory(1)], "the same id", id="same_id"),
        pytest.param([Trajectory(1, trajectory(1).turns[:1])], "has one turn", id="one_turn"),
        pytest.param([_last_turn_looks(trajectory(1))], "last turn must hold recalls", id="no_recalls"),
    ],
)
def test_a_file_that_cannot_be_asked_is_refused(made: list[Trajectory], reason: str, tmp_path: Path) -> None:
    save_trajectories(made, tmp_path / "q.json")
    with pytest.raises(TrajectoryFileError, match=reason):
        load_questions(tmp_path / "q.json")


def test_every_policy_is_compared_or_refused_with_a_reason() -> None:
    # A window keeps or drops whole screenshots: there is no budget to compare it at.
    assert set(POLICIES) == {"full", *policy_names()} - {"window"}
    assert set(REFUSED) == {"pyramidkv", "meda"}


def test_a_pruning_variant_has_all_budgets_and_the_full_cache_one() -> None:
    protocols = (Protocol.PERSISTENT, Protocol.STATELESS)
    assert len(cells_of(Variant("star", "star"), (0.2, 0.1, 0.05), protocols)) == 6
    assert {cell.budget for cell in cells_of(Variant("full", "full"), (0.2, 0.1), protocols)} == {1.0}
    assert {cell.budget for cell in cells_of(ABLATIONS[0], (0.2, 0.1, 0.05, 0.4), protocols)} == {0.2, 0.1, 0.05}


def test_names_of_cells_and_variants_are_unique() -> None:
    variants = chosen_variants([*POLICIES, *(one.name for one in ABLATIONS)])
    names = [cell.name for one in variants for cell in cells_of(one, (0.2, 0.1, 0.03), tuple(Protocol))]
    assert len(set(names)) == len(names)
    assert Cell("star", 0.03, Protocol.STATELESS).name == "star-3-stateless"


def test_an_unknown_variant_is_refused_with_the_names() -> None:
    with pytest.raises(EvalError, match=r"no variant fancy; known are full, star, .*star\.no-peaks"):
        chosen_variants(["star", "fancy"])
