"""What the suite asks of a trajectory: questions about the screen in view, recalls, and pairs that need two screens.

In every turn but the last, the first question is asked, about the screen in view. All questions of the last turn are
recalls, each asked as if it were the only one. Where the recalled widget stands elsewhere now, the agent also asks
where: from where to where it moved needs the earlier screen and the current one, and is right when both replies are.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path

from star_kv_sglang.tools.rollout.scoring import CELL
from star_kv_sglang.tools.rollout.trajectory import (
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
    """Where was a widget of an earlier screen, and where is it now?"""


TASKS = tuple(SuiteTask)


def task_of(question: Question) -> SuiteTask:
    """The task of a single question."""
    if question.back == 0:
        return SuiteTask(question.kind)
    return SuiteTask.MOVED if question.moved else SuiteTask.STILL


def follow_up(question: Question, now: tuple[LabelledBox, ...]) -> Question | None:
    """Where is the recalled widget now? None where it is gone or has not moved.

    Args:
        question: a recall, ``recall COLOUR LETTER STEP``.
        now: the widgets of the screen in view.
    """
    words = question.text.split()
    if len(words) != 4 or not question.moved:
        return None
    for widget in now:
        if [widget.colour, widget.letter] == words[1:3]:
            x, y, width, height = widget.box
            centre = f"x{(x + width // 2) // CELL} y{(y + height // 2) // CELL}"
            return Question(f"click {widget.colour} {widget.letter} here", centre, widget.box, 0, False)
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
