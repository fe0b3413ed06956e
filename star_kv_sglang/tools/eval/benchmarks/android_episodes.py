"""AndroidControl's true actions, and whole episodes for prompts that show earlier screenshots."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from star_kv_sglang.tools.actions import FAILURE, SUCCESS, Action, ActionKind
from star_kv_sglang.tools.eval.benchmarks.rows import Row, as_row, read_json
from star_kv_sglang.tools.eval.errors import DataError
from star_kv_sglang.tools.eval.samples import Screenshot, Step
from star_kv_sglang.tools.resize import Size

EPISODES_FILE: Final = "android_control_test.json"
LARGEST_IMAGE: Final = (1200, 2600)
"""Larger screenshots are scaled down to this width and height before they are sent."""

_POINTING: Final = {"click": ActionKind.CLICK, "long_press": ActionKind.LONG_PRESS}
_PLAIN: Final = {
    "navigate_back": ActionKind.BACK,
    "navigate_home": ActionKind.HOME,
    "wait": ActionKind.WAIT,
}
_STATUS: Final = {"successful": SUCCESS, "complete": SUCCESS, "infeasible": FAILURE}


def parse_truth(row: Row, size: Size) -> Action:
    """A true action; its point is in pixels of a screenshot of ``size``.

    Raises:
        MalformedRow: the action's type or a field of it is not known.
    """
    kind = row.field("action_type", str)
    if kind in _POINTING:
        return Action(_POINTING[kind], point=(row.field("x", float) / size[0], row.field("y", float) / size[1]))
    if kind in _PLAIN:
        return Action(_PLAIN[kind])
    match kind:
        case "input_text" | "type_text":
            return Action(ActionKind.WRITE, text=row.field("text", str))
        case "open_app":
            return Action(ActionKind.OPEN_APP, text=row.field("app_name", str))
        case "scroll":
            direction = row.field("direction", str)
            if direction not in ("up", "down", "left", "right"):
                raise row.error(f"field 'direction' must be up, down, left or right, not {direction!r}")
            return Action(ActionKind.SCROLL, direction=direction)
        case "status":
            status = row.field("goal_status", str)
            if status not in _STATUS:
                raise row.error(f"field 'goal_status' must be one of {', '.join(_STATUS)}, not {status!r}")
            return Action(ActionKind.TERMINATE, status=_STATUS[status])
    raise row.error(f"there is no action_type {kind!r}")


def open_screenshot(row: Row, data: Path, name: str) -> Screenshot:
    """A screenshot of the data set, in the folder itself or under ``images``.

    Raises:
        MalformedRow: it does not exist or is no image.
    """
    path = data / "images" / name
    path = path if path.exists() else data / name
    return Screenshot.open(path, source=row.path, row=row.place, limit=LARGEST_IMAGE)


@dataclass(frozen=True, slots=True)
class EpisodeFile:
    """``android_control_test.json``: the screenshots, actions and instructions of whole episodes, by identifier."""

    path: Path
    episodes: dict[str, Row]

    @classmethod
    def read(cls, data: Path) -> EpisodeFile:
        """Reads the file from the benchmark's folder.

        Raises:
            DataError: it is missing, or is no object of episodes.
        """
        path = data / EPISODES_FILE
        if not path.exists():
            raise DataError(f"{path} does not exist, and --history-frames needs it; use --history-frames 0 without it")
        values = read_json(path)
        if not isinstance(values, dict):
            raise DataError(f"{path} must hold an object of episodes, not {type(values).__name__}")
        rows = (as_row(path, f"episode {name}", value) for name, value in values.items())
        return cls(path, {row.text_id("episode_id"): row for row in rows})

    def steps_before(self, row: Row, episode_id: str, index: int, data: Path, *, low_level: bool) -> tuple[Step, ...]:
        """The steps before step ``index`` of an episode, with their true actions; they are not scored.

        Raises:
            MalformedRow: the episode is missing, shorter, or damaged; ``row`` is who asks for it.
        """
        if episode_id not in self.episodes:
            raise row.error(f"{self.path} has no episode {episode_id}")
        episode = self.episodes[episode_id]
        paths, said = episode.field("screenshot_paths", list), episode.field("step_instructions", list)
        actions = episode.items("actions", "action")
        if min(len(paths), len(said), len(actions)) < index:
            raise episode.error(f"has no step {index - 1}, which {row.path.name}, {row.place} needs in its history")
        steps = []
        for number in range(index):
            place = Row(self.path, f"{episode.place}, step {number}", episode.value)
            shot = open_screenshot(place, data, str(paths[number]))
            instruction = f"The next step: {said[number]}" if low_level else ""
            truth = parse_truth(actions[number], shot.size)
            identifier = f"{episode_id}/{index}/{number}"
            steps.append(Step(identifier, shot, instruction, (truth,), str(said[number]), scored=False))
        return tuple(steps)
