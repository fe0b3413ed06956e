"""What an answer does, and whether another answer does the same."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Final

from star_kv_sglang.tools.actions import Action, ActionKind, Point
from star_kv_sglang.tools.eval.errors import ReplyError
from star_kv_sglang.tools.eval.families import FAMILIES
from star_kv_sglang.tools.eval.families.base import ModelFamily
from star_kv_sglang.tools.eval.samples import TaskKind
from star_kv_sglang.tools.resize import Size
from star_kv_sglang.tools.rollout.scoring import parse_point
from star_kv_sglang.tools.tune.errors import TuneError

WORDS: Final = "words"
SMALL: Final = "small"

ReadAnswer = Callable[[str, Size], tuple[Action, ...]]
"""From an answer and the size of the newest screenshot to what it does; `ReplyError` where it is nothing."""


def agents() -> tuple[str, ...]:
    """The languages of ``--agent``."""
    return (WORDS, SMALL, *sorted(FAMILIES))


def answer_reader(agent: str, kind: TaskKind) -> ReadAnswer:
    """How answers are read.

    Args:
        agent: ``words`` compares the words alone; ``small`` is the language of the models in ``examples/tinygui``; else
            a model family.
        kind: of the actions that a family knows.

    Raises:
        TuneError: there is no such agent.
    """
    if agent == WORDS:
        return _words
    if agent == SMALL:
        return _small
    if agent in FAMILIES:
        return _of_family(FAMILIES[agent], kind)
    raise TuneError(f"--agent {agent!r} is not known: choose {', '.join(agents())}")


def is_same(reference: Sequence[Action] | None, other: Sequence[Action] | None, tolerance: float) -> bool:
    """Whether two answers do the same, action by action.

    Args:
        reference: the full cache's; None where its answer could not be read.
        other: likewise.
        tolerance: how far apart two points may be, as a share of the screen's sides.
    """
    if reference is None or other is None:
        return False
    return len(reference) == len(other) and all(
        _same_action(one, two, tolerance) for one, two in zip(reference, other, strict=True)
    )


def _same_action(one: Action, other: Action, tolerance: float) -> bool:
    same = one.kind is other.kind and _text(one.text) == _text(other.text)
    same = same and (one.keys, one.direction, one.status) == (other.keys, other.direction, other.status)
    return same and _near(one.point, other.point, tolerance) and _near(one.end, other.end, tolerance)


def _near(one: Point | None, other: Point | None, tolerance: float) -> bool:
    if one is None or other is None:
        return one is other
    return math.dist(one, other) <= tolerance


def _text(text: str | None) -> list[str]:
    return (text or "").split()


def _words(answer: str, size: Size) -> tuple[Action, ...]:
    return (Action(ActionKind.ANSWER, text=answer),)


def _small(answer: str, size: Size) -> tuple[Action, ...]:
    point = parse_point(answer)
    if point is None:
        return _words(answer, size)
    return (Action(ActionKind.CLICK, point=(point[0] / size[0], point[1] / size[1])),)


def _of_family(family: ModelFamily, kind: TaskKind) -> ReadAnswer:
    return lambda answer, size: family.parse(kind, answer, size)


def read(reader: ReadAnswer, answer: str, size: Size) -> tuple[Action, ...] | None:
    """What an answer does; None where it cannot be read."""
    try:
        return reader(answer, size)
    except ReplyError:
        return None
