"""AgentNetBench: desktop trajectories, each step with the right actions and alternatives.

Files: github.com/xlang-ai/OpenCUA, evaluation/agentnetbench.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from star_kv_sglang.tools.actions import FAILURE, SUCCESS, Action, ActionKind, Point, normalise_keys
from star_kv_sglang.tools.eval.benchmarks.agentnet_metric import TrueAction, score_actions
from star_kv_sglang.tools.eval.benchmarks.base import Benchmark, finish
from star_kv_sglang.tools.eval.benchmarks.rows import Row, as_row, read_json
from star_kv_sglang.tools.eval.benchmarks.screenspot import RelativeBox
from star_kv_sglang.tools.eval.errors import DataError, MalformedRow
from star_kv_sglang.tools.eval.samples import Dataset, Episode, Score, Screenshot, Step, TaskKind

_POINTING: Final = {
    "click": ActionKind.CLICK,
    "doubleclick": ActionKind.DOUBLE_CLICK,
    "tripleclick": ActionKind.TRIPLE_CLICK,
    "rightclick": ActionKind.RIGHT_CLICK,
    "middleclick": ActionKind.MIDDLE_CLICK,
    "moveto": ActionKind.MOVE,
}


class AgentNetBench(Benchmark):
    """AgentNetBench, every step asked with the true history before it."""

    name = "agentnetbench"
    summary = "AgentNetBench: the next desktop action, with earlier screenshots"
    kind = TaskKind.COMPUTER
    max_tokens = 512
    headline = "average"
    default_history_frames = None

    def load(self, data: Path, history_frames: int | None) -> Dataset:
        files = sorted(data.glob("*.json"))
        if not files:
            raise DataError(
                f"{data} holds no .json file; point --data at the folder of trajectories (images/ beside them)"
            )
        problems: list[MalformedRow] = []
        episodes: dict[str, Episode] = {}
        for path in files:
            try:
                episode = _episode(as_row(path, "trajectory", read_json(path)), data / "images", problems)
                if episode.id in episodes:
                    raise MalformedRow(path, "trajectory", f"task_id {episode.id} occurs twice")
                episodes[episode.id] = episode
            except MalformedRow as problem:
                problems.append(problem)
            except DataError as error:
                problems.append(MalformedRow(path, "trajectory", str(error)))
        return finish(self.name, data, episodes.values(), problems)

    def score(self, step: Step, actions: Sequence[Action], reply: str) -> Score:
        """The best of the true option and its alternatives."""
        return max((score_actions(option, actions) for option in step.reference), key=lambda score: score.value)


def _episode(row: Row, images: Path, problems: list[MalformedRow]) -> Episode:
    identifier = row.text_id("task_id")
    task = row.field("high_level_task_description", str)
    steps: list[Step] = []
    for number, step_row in enumerate(row.items("steps", "step")):
        try:
            steps.append(_step(step_row, identifier, number, images))
        except MalformedRow as problem:
            # The steps after a damaged one would have a history with a hole: they are left out as well.
            problems.append(problem)
            left_out = len(row.field("steps", list)) - number - 1
            if left_out:
                reason = f"{left_out} later step(s) left out: their history needs the step above"
                problems.append(MalformedRow(row.path, f"trajectory, after step {number}", reason))
            break
    return Episode(identifier, task, tuple(steps))


def _step(row: Row, task_id: str, number: int, images: Path) -> Step:
    screenshot = Screenshot.open(images / row.field("image", str), source=row.path, row=row.place)
    truth = _true_actions(row.items("ground_truth_actions", "action"))
    if not truth:
        raise row.error("field 'ground_truth_actions' is empty")
    options = [truth]
    for index, option in enumerate(row.field("alternative_options", list, [])):
        actions = _true_actions(_option_rows(row, index, option))
        if actions:
            options.append(actions)
    monologue = row.inner("inner_monologue") if "inner_monologue" in row.value else None
    thought = "" if monologue is None else monologue.field("low_level_instruction", str, "")
    return Step(
        id=f"{task_id}/{number}",
        screenshot=screenshot,
        truth=tuple(true.action for true in truth),
        thought=thought,
        groups={"action": truth[0].action.kind.value},
        reference=tuple(options),
    )


def _option_rows(row: Row, index: int, option: Any) -> list[Row]:
    """An alternative is a list of actions, an object with ``ground_truth_actions``, or one action."""
    place = f"{row.place}, alternative {index}"
    if isinstance(option, list):
        return [as_row(row.path, f"{place}, action {number}", value) for number, value in enumerate(option)]
    inner = as_row(row.path, place, option)
    return inner.items("ground_truth_actions", "action") if "ground_truth_actions" in inner.value else [inner]


def _true_actions(rows: Sequence[Row]) -> tuple[TrueAction, ...]:
    return tuple(_true_action(row) for row in rows)


def _true_action(row: Row) -> TrueAction:
    kind = row.field("type", str).lower()
    params = row.inner("params")
    if kind in _POINTING:
        return TrueAction(Action(_POINTING[kind], point=_position(params)), _boxes(row))
    match kind:
        case "dragto":
            return TrueAction(Action(ActionKind.DRAG, end=_position(params)), _boxes(row))
        case "scroll" | "hscroll":
            return TrueAction(Action(ActionKind.SCROLL, direction=_direction(params, kind)))
        case "write":
            text = params.field("text" if "text" in params.value else "content", str)
            return TrueAction(Action(ActionKind.WRITE, text=text))
        case "press" | "hotkey":
            keys = params.value.get("keys")
            pressed = [keys] if isinstance(keys, str) else params.field("keys", list)
            return TrueAction(Action(ActionKind.KEYS, keys=normalise_keys(str(key) for key in pressed)))
        case "wait":
            return TrueAction(Action(ActionKind.WAIT))
        case "terminate":
            status = params.field("status", str)
            if status not in (SUCCESS, FAILURE):
                raise params.error(f"field 'status' must be success or failure, not {status!r}")
            return TrueAction(Action(ActionKind.TERMINATE, status=status))
    raise row.error(f"there is no action type {row.value['type']!r}")


def _position(params: Row) -> Point:
    position = params.inner("position")
    return position.field("x", float), position.field("y", float)


def _direction(params: Row, kind: str) -> str:
    amount = params.value.get("amount", params.value.get("pixels", params.value.get("clicks", -1)))
    positive, negative = ("right", "left") if kind == "hscroll" else ("up", "down")
    return positive if isinstance(amount, (int, float)) and amount > 0 else negative


def _boxes(row: Row) -> tuple[RelativeBox, ...]:
    if not row.value.get("metadata"):
        return ()
    metadata = row.inner("metadata")
    boxes = []
    for box in metadata.items("bboxes", "bbox") if "bboxes" in metadata.value else []:
        x, y, width, height = box.numbers("rel_bbox", 4)
        boxes.append((x, y, x + width, y + height))
    return tuple(boxes)
