"""AndroidControl in the pre-processed form that GUI agents are compared on: one row for each sampled step.

The metric is that of the step-level evaluation of UGround (github.com/OSU-NLP-Group/UGround, AndroidControl): a click
is right inside the smallest accessibility node that holds the true point.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final

from star_kv_sglang.tools.actions import Action, ActionKind, Point
from star_kv_sglang.tools.eval.benchmarks.android_episodes import (
    EPISODES_FILE,
    EpisodeFile,
    open_screenshot,
    parse_truth,
)
from star_kv_sglang.tools.eval.benchmarks.base import Benchmark, collect, finish
from star_kv_sglang.tools.eval.benchmarks.rows import Row, read_rows
from star_kv_sglang.tools.eval.errors import DataError, MalformedRow
from star_kv_sglang.tools.eval.samples import Dataset, Episode, Score, Step, TaskKind

_POINTING: Final = (ActionKind.CLICK, ActionKind.LONG_PRESS)


@dataclass(frozen=True, slots=True)
class Node:
    """An accessibility node: its box relative to the screenshot, and what it says, in lower case."""

    left: float
    top: float
    right: float
    bottom: float
    words: str

    @property
    def area(self) -> float:
        """Of the relative box."""
        return (self.right - self.left) * (self.bottom - self.top)

    def holds(self, point: Point) -> bool:
        """Whether a point lies in the box, edges included."""
        return self.left <= point[0] <= self.right and self.top <= point[1] <= self.bottom


def smallest_node(nodes: Sequence[Node], point: Point) -> Node | None:
    """The node of the least area that holds a point; the earlier of equals."""
    return min((node for node in nodes if node.holds(point)), key=lambda node: node.area, default=None)


class AndroidControl(Benchmark):
    """One level of instructions."""

    kind = TaskKind.MOBILE
    headline = "step accuracy"
    level: ClassVar[str]

    def load(self, data: Path, history_frames: int | None) -> Dataset:
        problems: list[MalformedRow] = []
        episodes_file = EpisodeFile.read(data) if history_frames != 0 else None
        rows = [row for path in _row_files(data) for row in read_rows(path, problems)]
        episodes = collect(rows, lambda row: self._episode(row, data, episodes_file), problems)
        return finish(self.name, data, episodes, problems)

    def _episode(self, row: Row, data: Path, episodes_file: EpisodeFile | None) -> Episode:
        episode_id = row.text_id("episode_id")
        index = row.field("step_index", int)
        goal = row.field("goal", str)
        low = row.field("step_instruction", str)
        screenshot = open_screenshot(row, data, row.field("screenshot", str))
        truth = parse_truth(row.inner("action"), screenshot.size)
        nodes = tuple(_nodes(row, screenshot.size))
        identifier = f"{episode_id}/{index}"
        said = f"The next step: {low}" if self.level == "low" else ""
        if episodes_file is None:
            history: tuple[Step, ...] = ()
            task = _with_previous(goal, row)
        else:
            history = episodes_file.steps_before(row, episode_id, index, data, low_level=self.level == "low")
            task = goal
        step = Step(
            identifier,
            screenshot,
            instruction=said,
            truth=(truth,),
            thought=low,
            groups={"action": truth.kind.value},
            reference=nodes,
        )
        return Episode(identifier, task, (*history, step))

    def score(self, step: Step, actions: Sequence[Action], reply: str) -> Score:
        """Step accuracy, and grounding accuracy for the replies that point where the truth points.

        Only the reply's first action counts. A click on a node that names the app stands for ``open_app``, and one on a
        node that says "back" for going back.
        """
        truth = step.truth[0]
        if not actions:
            return Score(0.0)
        action = actions[0]
        if truth.kind in _POINTING and action.kind is truth.kind:
            right = float(_hits(step.reference, truth.point, action.point))
            return Score(right, {"grounding": right})
        stands_for = {ActionKind.OPEN_APP: (truth.text or "").lower(), ActionKind.BACK: "back"}
        if action.kind is ActionKind.CLICK and action.point is not None and truth.kind in stands_for:
            node = smallest_node(step.reference, action.point)
            right = float(node is not None and stands_for[truth.kind] in node.words)
            return Score(right, {"grounding": right})
        return Score(float(_same(truth, action)))


class AndroidControlHigh(AndroidControl):
    """Only the episode's goal is said."""

    name = "android-control-high"
    summary = "AndroidControl, high level: the goal alone; with --history-frames also earlier screenshots"
    level = "high"


class AndroidControlLow(AndroidControl):
    """The step's instruction is said too."""

    name = "android-control-low"
    summary = "AndroidControl, low level: the goal and the step's instruction; with --history-frames also earlier ones"
    level = "low"


def _row_files(data: Path) -> list[Path]:
    files = sorted(path for path in data.glob("*.json*") if path.name != EPISODES_FILE)
    if not files:
        raise DataError(f"{data} holds no .json or .jsonl file of steps besides {EPISODES_FILE}; point --data at them")
    return files


def _with_previous(goal: str, row: Row) -> str:
    previous = row.field("previous_actions", list)
    if not previous:
        return goal
    lines = "\n".join(f"{number}. {action}" for number, action in enumerate(previous, start=1))
    return f"{goal}\n\nSteps taken so far:\n{lines}"


def _nodes(row: Row, size: tuple[int, int]) -> Iterator[Node]:
    stack: list[Any] = list(reversed(row.field("accessibility_tree", list)))
    while stack:
        value = stack.pop()
        if isinstance(value, list):
            stack.extend(reversed(value))
            continue
        box = value.get("bbox_pixels") if isinstance(value, Mapping) else None
        try:
            left, top, right, bottom = (float(box[name]) for name in ("x_min", "y_min", "x_max", "y_max"))  # type: ignore[index]
        except (KeyError, TypeError, ValueError):
            raise row.error(
                "field 'accessibility_tree' holds a node without bbox_pixels {x_min, y_min, x_max, y_max}: "
                f"{repr(value)[:80]}"
            ) from None
        words = " ".join(str(value.get(name) or "") for name in ("text", "content_description")).lower()
        yield Node(left / size[0], top / size[1], right / size[0], bottom / size[1], words)


def _hits(nodes: Sequence[Node], truth: Point | None, point: Point | None) -> bool:
    if truth is None or point is None:
        return False
    node = smallest_node(nodes, truth)
    return node is not None and node.holds(point)


def _same(truth: Action, action: Action) -> bool:
    if truth.kind is not action.kind:
        return False
    match truth.kind:
        case ActionKind.WRITE:
            # Agents end a text with a line break to submit it; AndroidControl has no such thing.
            return (action.text or "").rstrip("\n") == (truth.text or "").rstrip("\n")
        case ActionKind.OPEN_APP:
            return (action.text or "").strip().lower() == (truth.text or "").strip().lower()
        case ActionKind.SCROLL:
            return action.direction == truth.direction
        case ActionKind.TERMINATE:
            return action.status == truth.status
    return True
