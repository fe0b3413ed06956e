"""AgentNetBench's metric: each true action is compared with the predicted action at its place.

A click counts fully in one of the element's boxes or within 0.01 sqrt 2 of the true point (relative units), less with
the distance; a text from an edit similarity of 0.8 up, less below; keys as a set; a scroll by its type alone; the end
of a task by its status. This is the published form of the metric (OpenCUA, arXiv 2508.09123).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from star_kv_sglang.tools.actions import POINTING, Action, ActionKind, Point
from star_kv_sglang.tools.eval.benchmarks.base import mean
from star_kv_sglang.tools.eval.benchmarks.screenspot import RelativeBox, contains
from star_kv_sglang.tools.eval.samples import Score

CLOSE: Final = 0.01 * math.sqrt(2)
"""A point this near to the true one counts fully."""

_STEEPNESS: Final = 120.0
_SIMILAR: Final = 0.8
_CONTENT: Final = frozenset({ActionKind.WRITE, ActionKind.KEYS})
_FUNCTION: Final = frozenset({ActionKind.TERMINATE, ActionKind.WAIT})


@dataclass(frozen=True, slots=True)
class TrueAction:
    """A right action and the boxes in which a pointer may be anywhere: left, top, right, bottom, relative."""

    action: Action
    boxes: tuple[RelativeBox, ...] = ()


def score_actions(truth: Sequence[TrueAction], predicted: Sequence[Action]) -> Score:
    """Compares actions, place by place.

    ``value`` is the mean over the kinds of true actions of their mean scores. It is 0 when the first predicted action
    is of no true kind. ``parts`` has the same for the columns coordinate, content and function, those that occur.
    """
    true = _merge_enter([*truth])
    said = [item.action for item in _merge_enter([TrueAction(action) for action in _expand_drags(predicted)])]
    kinds = {item.action.kind for item in true}
    matches = bool(said) and said[0].kind in kinds
    by_kind: dict[ActionKind, list[float]] = {kind: [] for kind in kinds}
    for index, item in enumerate(true):
        action = said[index] if matches and index < len(said) else None
        by_kind[item.action.kind].append(0.0 if action is None else action_score(item, action))
    means = {kind: mean(scores) for kind, scores in by_kind.items()}
    columns: dict[str, list[float]] = {}
    for kind, value in means.items():
        columns.setdefault(column(kind), []).append(value)
    return Score(mean(list(means.values())), {name: mean(values) for name, values in sorted(columns.items())})


def column(kind: ActionKind) -> str:
    """The column of the benchmark's table that a kind of action counts in."""
    return "content" if kind in _CONTENT else "function" if kind in _FUNCTION else "coordinate"


def action_score(truth: TrueAction, action: Action) -> float:
    """What one predicted action is worth against the true one, in [0, 1]."""
    true = truth.action
    if action.kind is not true.kind:
        return 0.0
    if true.kind in POINTING:
        return _point_score(truth.boxes, true.point, action.point)
    match true.kind:
        case ActionKind.DRAG:
            return _point_score(truth.boxes, true.end, action.end)
        case ActionKind.WRITE:
            return write_score(true.text or "", action.text or "")
        case ActionKind.KEYS:
            return float(set(true.keys) == set(action.keys))
        case ActionKind.TERMINATE:
            return float(true.status == action.status)
    return 1.0


def _point_score(boxes: Sequence[RelativeBox], true: Point | None, point: Point | None) -> float:
    if true is None or point is None:
        return 0.0
    if any(contains(box, point) for box in boxes):
        return 1.0
    return distance_score(math.dist(true, point))


def distance_score(distance: float) -> float:
    """1 up to `CLOSE`, then falling by the factor e every 1/120 of the screen."""
    return 1.0 if distance <= CLOSE else math.exp(-_STEEPNESS * (distance - CLOSE))


def write_score(true: str, written: str) -> float:
    """1 from an edit similarity of 0.8 up, in proportion below; case and outer white space do not count."""
    true, written = true.lower().strip(), written.lower().strip()
    longest = max(len(true), len(written))
    if longest == 0:
        return 1.0
    similarity = 1.0 - edit_distance(true, written) / longest
    return 1.0 if similarity >= _SIMILAR else similarity / _SIMILAR


def edit_distance(left: str, right: str) -> int:
    """Levenshtein distance: insertions, deletions and substitutions, one each."""
    previous = list(range(len(right) + 1))
    for row, left_char in enumerate(left, start=1):
        current = [row]
        for place, right_char in enumerate(right, start=1):
            substitution = previous[place - 1] + (left_char != right_char)
            current.append(min(current[-1] + 1, previous[place] + 1, substitution))
        previous = current
    return previous[-1]


def _merge_enter(actions: Sequence[TrueAction]) -> list[TrueAction]:
    """Joins a text and the Enter after it into one text, since some models submit with a line break."""
    merged: list[TrueAction] = []
    for item in actions:
        last = merged[-1].action if merged else None
        is_enter = item.action.kind is ActionKind.KEYS and item.action.keys == ("enter",)
        if is_enter and last is not None and last.kind is ActionKind.WRITE and not (last.text or "").endswith("\n"):
            merged[-1] = replace(merged[-1], action=replace(last, text=f"{last.text}\n"))
        else:
            merged.append(item)
    return merged


def _expand_drags(actions: Sequence[Action]) -> list[Action]:
    """A drag that names its start becomes a move and a drag, which is how the true actions are written."""
    expanded: list[Action] = []
    for action in actions:
        if action.kind is ActionKind.DRAG and action.point is not None:
            expanded.append(Action(ActionKind.MOVE, point=action.point))
        expanded.append(action)
    return expanded
