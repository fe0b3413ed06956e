"""What the suite asks of a trajectory: questions about the screen in view, recalls, and pairs that need two screens.

In every turn but the last, the first question is asked, about the screen in view. All questions of the last turn are
recalls, each asked as if it were the only one. Where another widget now stands at the recalled place, the agent goes on
to ask what stands there now. The right answer needs the earlier screen for the place and the current one for the name.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from star_kv_sglang.rollout.scoring import parse_point, point_in_box
from star_kv_sglang.rollout.trajectory import (
    LabelledBox,
    Question,
    Trajectory,
    TrajectoryFileError,
    load_trajectories,
)


class SuiteTask(StrEnum):
    """What a question measures."""

    CLICK = "click"
    """Where is a widget of the screen in view?"""
    READ = "read"
    """What stands at a point of the screen in view?"""
    STILL = "recall still there"
    """Where was a widget of an earlier screen, that stands there on the current one too?"""
    MOVED = "recall moved or gone"
    """The same, where only the earlier screen has the answer."""
    TWO_SCREENS = "two screens"
    """Where was a widget of an earlier screen, and what stands there now?"""


TASKS = tuple(SuiteTask)


def task_of(question: Question) -> SuiteTask:
    """The task of a single question."""
    if question.back == 0:
        return SuiteTask(question.kind)
    return SuiteTask.MOVED if question.moved else SuiteTask.STILL


@dataclass(frozen=True, slots=True)
class FollowUp:
    """The second of two questions: what stands now at the place that the first one's reply names?

    Attributes:
        answer: the label of the widget there, on the screen in view.
    """

    answer: str

    def text(self, reply: str) -> str:
        """The question, with the model's own reply to the first."""
        return f"read {' '.join(reply.split())} here"


def follow_up(question: Question, now: tuple[LabelledBox, ...]) -> FollowUp | None:
    """The follow-up of a recall, or None where nothing stands now at the recalled place.

    Args:
        question: a recall.
        now: the widgets of the screen in view.
    """
    point = parse_point(question.answer)
    if point is None or not question.moved:
        return None
    for widget in now:
        if point_in_box(point, widget.box):
            return FollowUp(f"{widget.colour} {widget.letter}")
    return None


def load_questions(path: Path) -> list[Trajectory]:
    """Reads a trajectory file that the suite can ask.

    Raises:
        TrajectoryFileError: it cannot be read, has a trajectory of a single turn, a turn without a question, or a last
            turn that asks about the screen in view.
    """
    trajectories = load_trajectories(path)
    ids = [trajectory.id for trajectory in trajectories]
    if len(set(ids)) < len(ids):
        raise TrajectoryFileError(f"{path}: two trajectories have the same id; results are kept by id")
    for trajectory in trajectories:
        place = f"{path}: trajectory {trajectory.id}"
        if len(trajectory.turns) < 2:
            raise TrajectoryFileError(f"{place}: has one turn; a recall needs an earlier one")
        if not all(turn.questions for turn in trajectory.turns):
            raise TrajectoryFileError(f"{place}: a turn asks nothing")
        if any(question.back == 0 for question in trajectory.turns[-1].questions):
            raise TrajectoryFileError(f"{place}: the last turn must hold recalls only")
        kinds = {turn.questions[0].kind for turn in trajectory.turns[:-1] if turn.questions[0].back == 0}
        if not kinds <= {SuiteTask.CLICK.value, SuiteTask.READ.value}:
            raise TrajectoryFileError(f"{place}: asks {sorted(kinds)} about a screen in view; click and read are known")
    return trajectories
