"""The trajectory file: what the agent saw, what it was asked, what the right answer was.

A trajectory file is a JSON list beside its PNG screenshots::

    [{"id": 0, "turns": [{"image": "trajectories_000_0.png", "step": "step1",
                          "widgets": [{"box": [59, 219, 49, 31], "colour": "red", "letter": "K"}],
                          "questions": [{"question": "click red K here", "answer": "x10 y29",
                                         "box": [59, 219, 49, 31], "back": 0, "moved": false}]}]}]

Boxes are ``[x, y, width, height]`` in pixels of the screenshot the question is about, which is ``back`` turns
before the turn that asks. ``moved`` marks a question whose target is no longer at that place on the screen in view,
so that only the older screenshot holds the answer. Trajectories with the same first turn are branches of one task.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from star_kv_sglang.errors import StarKVError

Box = tuple[int, int, int, int]
"""x, y, width, height in pixels."""

_T = TypeVar("_T")

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


class TrajectoryFileError(StarKVError, ValueError):
    """A trajectory file cannot be used; the message names the file and the place in it."""


@dataclass(frozen=True, slots=True)
class LabelledBox:
    """Ground truth of one widget on a screen."""

    box: Box
    colour: str
    letter: str


@dataclass(frozen=True, slots=True)
class Question:
    """One question with its ground truth.

    Attributes:
        text: what the user asks; its first word is the kind (``click``, ``read``, ``recall``).
        answer: the reference answer.
        box: the target, in pixels of the screen it is on.
        back: how many turns before the asking turn that screen was shown; 0 is the screen in view.
        moved: the target is gone from the screen in view, or stands elsewhere on it.
    """

    text: str
    answer: str
    box: Box
    back: int
    moved: bool

    @property
    def kind(self) -> str:
        """The question's first word."""
        return self.text.split(maxsplit=1)[0]


@dataclass(frozen=True, slots=True)
class Turn:
    """One screenshot and the questions asked while it is in view."""

    step: str
    image_png: bytes
    questions: tuple[Question, ...]
    widgets: tuple[LabelledBox, ...] = ()


@dataclass(frozen=True, slots=True)
class Trajectory:
    """What one agent went through, turn by turn."""

    id: int
    turns: tuple[Turn, ...]


def load_trajectories(path: Path) -> list[Trajectory]:
    """Reads a trajectory file and its screenshots.

    Raises:
        TrajectoryFileError: the file is missing, is no JSON, lacks a field, or names a screenshot that is no PNG.
    """
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise TrajectoryFileError(
            f"{path}: cannot be read ({error.strerror}); give the path of a .json file"
        ) from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise TrajectoryFileError(f"{path}: is no JSON ({error})") from error
    if not isinstance(rows, list) or not rows:
        raise TrajectoryFileError(f"{path}: must hold a JSON list of at least one trajectory")
    return [_trajectory(row, path, f"trajectory {index}") for index, row in enumerate(rows)]


def save_trajectories(trajectories: Sequence[Trajectory], path: Path) -> None:
    """Writes ``path`` and one PNG a turn beside it, ``{stem}_{trajectory:03d}_{turn}.png``; what is there is replaced.

    The file's stem keeps the screenshots of several files in one folder apart.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = []
    for number, trajectory in enumerate(trajectories):
        turns = []
        for index, turn in enumerate(trajectory.turns):
            image = f"{path.stem}_{number:03d}_{index}.png"
            (path.parent / image).write_bytes(turn.image_png)
            turns.append(_turn_row(turn, image))
        rows.append({"id": trajectory.id, "turns": turns})
    path.write_text(json.dumps(rows), encoding="utf-8")


def _turn_row(turn: Turn, image: str) -> dict[str, Any]:
    return {
        "image": image,
        "step": turn.step,
        "widgets": [{"box": list(w.box), "colour": w.colour, "letter": w.letter} for w in turn.widgets],
        "questions": [
            {"question": q.text, "answer": q.answer, "back": q.back, "box": list(q.box), "moved": q.moved}
            for q in turn.questions
        ],
    }


def _trajectory(row: object, path: Path, place: str) -> Trajectory:
    turns = _field(row, "turns", list, path, place)
    if not turns:
        raise TrajectoryFileError(f"{path}: {place}: has no turns")
    return Trajectory(
        id=_field(row, "id", int, path, place),
        turns=tuple(_turn(turn, path, f"{place}, turn {index}") for index, turn in enumerate(turns)),
    )


def _turn(row: object, path: Path, place: str) -> Turn:
    image = path.parent / _field(row, "image", str, path, place)
    try:
        png = image.read_bytes()
    except OSError as error:
        raise TrajectoryFileError(
            f"{path}: {place}: screenshot {image.name} cannot be read ({error.strerror})"
        ) from error
    if not png.startswith(_PNG_SIGNATURE):
        raise TrajectoryFileError(f"{path}: {place}: screenshot {image.name} is no PNG")
    questions = _field(row, "questions", list, path, place)
    if not questions:
        raise TrajectoryFileError(f"{path}: {place}: has no questions")
    widgets = _field(row, "widgets", list, path, place)
    return Turn(
        step=_field(row, "step", str, path, place),
        image_png=png,
        questions=tuple(_question(q, path, f"{place}, question {i}") for i, q in enumerate(questions)),
        widgets=tuple(_widget(w, path, f"{place}, widget {i}") for i, w in enumerate(widgets)),
    )


def _question(row: object, path: Path, place: str) -> Question:
    text = _field(row, "question", str, path, place)
    if not text.strip():
        raise TrajectoryFileError(f"{path}: {place}: field 'question' is empty")
    return Question(
        text=text,
        answer=_field(row, "answer", str, path, place),
        box=_box(row, path, place),
        back=_field(row, "back", int, path, place),
        moved=_field(row, "moved", bool, path, place),
    )


def _widget(row: object, path: Path, place: str) -> LabelledBox:
    return LabelledBox(
        box=_box(row, path, place),
        colour=_field(row, "colour", str, path, place),
        letter=_field(row, "letter", str, path, place),
    )


def _box(row: object, path: Path, place: str) -> Box:
    values = _field(row, "box", list, path, place)
    if len(values) != 4 or not all(isinstance(value, int) for value in values):
        raise TrajectoryFileError(f"{path}: {place}: field 'box' must be four integers, not {values!r}")
    x, y, width, height = values
    return x, y, width, height


def _field(row: object, name: str, kind: type[_T], path: Path, place: str) -> _T:
    if not isinstance(row, dict):
        raise TrajectoryFileError(f"{path}: {place}: must be an object, not {type(row).__name__}")
    if name not in row:
        raise TrajectoryFileError(f"{path}: {place}: field '{name}' is missing")
    value = row[name]
    if not isinstance(value, kind):
        raise TrajectoryFileError(f"{path}: {place}: field '{name}' must be {kind.__name__}, not {value!r}")
    return value
