"""One vocabulary of GUI actions for all models and benchmarks.

Points are relative: ``(0, 0)`` is the upper left and ``(1, 1)`` the lower right corner of the screenshot, whatever size
the model saw it in.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any, Final

Point = tuple[float, float]
"""x, y, each a share of the screenshot's width or height."""


class ActionKind(StrEnum):
    """What an action does."""

    CLICK = "click"
    DOUBLE_CLICK = "double_click"
    TRIPLE_CLICK = "triple_click"
    RIGHT_CLICK = "right_click"
    MIDDLE_CLICK = "middle_click"
    LONG_PRESS = "long_press"
    MOVE = "move"
    DRAG = "drag"
    SCROLL = "scroll"
    WRITE = "write"
    KEYS = "keys"
    OPEN_APP = "open_app"
    HOME = "home"
    BACK = "back"
    WAIT = "wait"
    ANSWER = "answer"
    TERMINATE = "terminate"


POINTING: Final = frozenset(
    {
        ActionKind.CLICK,
        ActionKind.DOUBLE_CLICK,
        ActionKind.TRIPLE_CLICK,
        ActionKind.RIGHT_CLICK,
        ActionKind.MIDDLE_CLICK,
        ActionKind.LONG_PRESS,
        ActionKind.MOVE,
    }
)
"""Kinds that name one point of the screen."""

SUCCESS: Final = "success"
FAILURE: Final = "failure"


@dataclass(frozen=True, slots=True)
class Action:
    """One action.

    Attributes:
        kind: what it does.
        point: where; for a drag where it starts, None when it starts at the pointer.
        end: where a drag or a swipe ends.
        text: what is written, answered, or the name of the app.
        keys: keys pressed together (or one after another), lower case, in pyautogui's names.
        direction: of a scroll, the side of the content that comes into view: up, down, left, right.
        status: of a termination, ``success`` or ``failure``.
    """

    kind: ActionKind
    point: Point | None = None
    end: Point | None = None
    text: str | None = None
    keys: tuple[str, ...] = ()
    direction: str | None = None
    status: str | None = None

    def to_json(self) -> dict[str, Any]:
        """The fields that are set, as a JSON object."""
        return {name: value for name, value in asdict(self).items() if value not in (None, ())}


_KEY_ALIASES: Final = {
    "control": "ctrl",
    "return": "enter",
    "escape": "esc",
    "arrowleft": "left",
    "arrowright": "right",
    "arrowup": "up",
    "arrowdown": "down",
    "page_up": "pageup",
    "page_down": "pagedown",
    "pgup": "pageup",
    "pgdn": "pagedown",
    "cmd": "command",
    "del": "delete",
    " ": "space",
}


def normalise_keys(keys: Iterable[str]) -> tuple[str, ...]:
    """Keys in lower case and under one name each: ``Control`` and ``ctrl`` are the same key."""
    lowered = (key.lower() if key == " " else key.strip().lower() for key in keys)
    return tuple(_KEY_ALIASES.get(key, key) for key in lowered if key)


def swipe_direction(start: Point, end: Point) -> str:
    """The scroll direction of a finger's swipe: a swipe upwards brings what is below into view, so it is ``down``."""
    dx, dy = end[0] - start[0], end[1] - start[1]
    if abs(dx) > abs(dy):
        return "right" if dx < 0 else "left"
    return "down" if dy < 0 else "up"
