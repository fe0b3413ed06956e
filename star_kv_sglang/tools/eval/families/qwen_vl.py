"""Qwen2.5-VL and Qwen3-VL: a ``<tool_call>`` of the function ``computer_use`` or ``mobile_use``.

The names of functions, actions and arguments are those that the models were trained on (github.com/QwenLM/Qwen3-VL).
Qwen2.5-VL writes pixels of the resized image, Qwen3-VL thousandths.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from star_kv_sglang.tools.actions import (
    FAILURE,
    SUCCESS,
    Action,
    ActionKind,
    Point,
    normalise_keys,
    swipe_direction,
)
from star_kv_sglang.tools.eval.coordinates import CoordinateSpace
from star_kv_sglang.tools.eval.errors import ReplyError
from star_kv_sglang.tools.eval.families.base import ModelFamily, numbers_to_point, render_prompt
from star_kv_sglang.tools.eval.families.qwen_tools import tool_signature
from star_kv_sglang.tools.eval.samples import TaskKind
from star_kv_sglang.tools.resize import PixelBounds, Size

_TAGGED = re.compile(r"<tool_call>(.*?)(?:</tool_call>|$)", re.DOTALL)
_POINTING: Final = {
    "left_click": ActionKind.CLICK,
    "click": ActionKind.CLICK,
    "double_click": ActionKind.DOUBLE_CLICK,
    "triple_click": ActionKind.TRIPLE_CLICK,
    "right_click": ActionKind.RIGHT_CLICK,
    "middle_click": ActionKind.MIDDLE_CLICK,
    "long_press": ActionKind.LONG_PRESS,
    "mouse_move": ActionKind.MOVE,
}
_COMPUTER_WORDS: Final = {kind: word for word, kind in _POINTING.items() if word not in ("click", "long_press")}
_MOBILE_WORDS: Final = {ActionKind.CLICK: "click", ActionKind.LONG_PRESS: "long_press"}
_BUTTONS: Final = {
    "back": Action(ActionKind.BACK),
    "home": Action(ActionKind.HOME),
    "enter": Action(ActionKind.KEYS, keys=("enter",)),
    "menu": Action(ActionKind.KEYS, keys=("menu",)),
}
_SWIPES: Final[Mapping[str, tuple[Point, Point]]] = {
    "down": ((0.5, 0.7), (0.5, 0.3)),
    "up": ((0.5, 0.3), (0.5, 0.7)),
    "right": ((0.7, 0.5), (0.3, 0.5)),
    "left": ((0.3, 0.5), (0.7, 0.5)),
}
_STATUS: Final = {"success": SUCCESS, "failure": FAILURE}


@dataclass(frozen=True)
class Qwen25VL(ModelFamily):
    """Qwen2.5-VL."""

    name = "qwen2.5-vl"
    summary = "Qwen2.5-VL: tool calls, pixels of the resized image"
    space = CoordinateSpace.RESIZED_PIXELS

    def system_text(self, kind: TaskKind, sent: Size) -> str | None:
        if self.system_prompt is not None:
            return self.system_prompt
        mobile = kind is TaskKind.MOBILE
        tool = json.dumps(tool_signature(mobile=mobile, screen=self.corner(sent)), ensure_ascii=False)
        return render_prompt("qwen_system", tool=tool, grounding=kind is TaskKind.GROUNDING)

    def task_text(self, kind: TaskKind, task: str) -> str:
        return task if kind is TaskKind.GROUNDING else render_prompt("qwen_task", task=task)

    def parse(self, kind: TaskKind, reply: str, sent: Size) -> tuple[Action, ...]:
        blocks = _TAGGED.findall(reply) or [reply]
        return tuple(self._parse_arguments(_call_arguments(block), sent) for block in blocks)

    def _parse_arguments(self, arguments: Mapping[str, Any], sent: Size) -> Action:
        word = str(arguments.get("action", "")).strip().lower()
        if word in _POINTING:
            return Action(_POINTING[word], point=self._point(arguments, "coordinate", sent))
        match word:
            case "left_click_drag":
                return Action(ActionKind.DRAG, end=self._point(arguments, "coordinate", sent))
            case "swipe":
                start, end = (self._point(arguments, name, sent) for name in ("coordinate", "coordinate2"))
                return Action(ActionKind.SCROLL, point=start, end=end, direction=swipe_direction(start, end))
            case "scroll" | "hscroll":
                pixels = arguments.get("pixels")
                if not isinstance(pixels, (int, float)) or isinstance(pixels, bool):
                    raise ReplyError(f"{word} needs a number of pixels, not {pixels!r}")
                positive, negative = ("up", "down") if word == "scroll" else ("right", "left")
                point = self._point(arguments, "coordinate", sent) if "coordinate" in arguments else None
                return Action(ActionKind.SCROLL, point=point, direction=positive if pixels > 0 else negative)
            case "type":
                return Action(ActionKind.WRITE, text=_text(arguments))
            case "key":
                keys = arguments.get("keys", arguments.get("text"))
                pressed = [keys] if isinstance(keys, str) else keys
                if not isinstance(pressed, list) or not pressed or not all(isinstance(key, str) for key in pressed):
                    raise ReplyError(f"key needs a list of keys, not {keys!r}")
                return Action(ActionKind.KEYS, keys=normalise_keys(pressed))
            case "system_button":
                button = str(arguments.get("button", "")).lower()
                if button not in _BUTTONS:
                    raise ReplyError(f"there is no system button {button!r}")
                return _BUTTONS[button]
            case "open":
                return Action(ActionKind.OPEN_APP, text=_text(arguments))
            case "wait":
                return Action(ActionKind.WAIT)
            case "answer":
                return Action(ActionKind.ANSWER, text=_text(arguments))
            case "terminate":
                status = str(arguments.get("status", ""))
                if status not in _STATUS:
                    raise ReplyError(f"terminate needs the status success or failure, not {status!r}")
                return Action(ActionKind.TERMINATE, status=_STATUS[status])
        raise ReplyError(f"there is no action {word!r}")

    def _point(self, arguments: Mapping[str, Any], name: str, sent: Size) -> Point:
        value = arguments.get(name)
        if not isinstance(value, list) or not all(isinstance(v, (int, float)) for v in value):
            raise ReplyError(f"{arguments.get('action')} needs {name} [x, y], not {value!r}")
        return self.read_point(*numbers_to_point([float(v) for v in value], name), sent)

    def render(self, kind: TaskKind, actions: Sequence[Action], thought: str, sent: Size) -> str:
        mobile = kind is TaskKind.MOBILE
        lines = [thought] if thought else []
        for action in actions:
            arguments = self._write_mobile(action, sent) if mobile else self._write_computer(action, sent)
            call = {"name": "mobile_use" if mobile else "computer_use", "arguments": arguments}
            lines.append(f"<tool_call>\n{json.dumps(call, ensure_ascii=False)}\n</tool_call>")
        return "\n".join(lines)

    def _write_computer(self, action: Action, sent: Size) -> dict[str, Any]:
        if action.kind in _COMPUTER_WORDS:
            return {"action": _COMPUTER_WORDS[action.kind], "coordinate": [*self.write_point(action.point, sent)]}
        match action.kind:
            case ActionKind.DRAG:
                return {"action": "left_click_drag", "coordinate": [*self.write_point(action.end, sent)]}
            case ActionKind.SCROLL:
                word = "hscroll" if action.direction in ("left", "right") else "scroll"
                return {"action": word, "pixels": 500 if action.direction in ("up", "right") else -500}
            case ActionKind.KEYS:
                return {"action": "key", "keys": [*action.keys]}
        return _write_shared(action)

    def _write_mobile(self, action: Action, sent: Size) -> dict[str, Any]:
        if action.kind in _MOBILE_WORDS:
            return {"action": _MOBILE_WORDS[action.kind], "coordinate": [*self.write_point(action.point, sent)]}
        match action.kind:
            case ActionKind.SCROLL:
                start, end = _SWIPES[action.direction or "down"]
                coordinates = {
                    "coordinate": [*self.write_point(start, sent)],
                    "coordinate2": [*self.write_point(end, sent)],
                }
                return {"action": "swipe", **coordinates}
            case ActionKind.BACK:
                return {"action": "system_button", "button": "Back"}
            case ActionKind.HOME:
                return {"action": "system_button", "button": "Home"}
            case ActionKind.KEYS if action.keys == ("enter",):
                return {"action": "system_button", "button": "Enter"}
            case ActionKind.OPEN_APP:
                return {"action": "open", "text": action.text or ""}
        return _write_shared(action)


QWEN3_PIXELS: Final = PixelBounds(factor=32, min_pixels=64 * 32 * 32, max_pixels=16384 * 32 * 32)


@dataclass(frozen=True)
class Qwen3VL(Qwen25VL):
    """Qwen3-VL: the same tools, in thousandths."""

    name = "qwen3-vl"
    summary = "Qwen3-VL: tool calls, thousandths of the image's sides"
    space = CoordinateSpace.THOUSANDTHS
    bounds: PixelBounds = QWEN3_PIXELS


def _write_shared(action: Action) -> dict[str, Any]:
    match action.kind:
        case ActionKind.WRITE:
            return {"action": "type", "text": action.text or ""}
        case ActionKind.WAIT:
            return {"action": "wait", "time": 1}
        case ActionKind.ANSWER:
            return {"action": "answer", "text": action.text or ""}
        case ActionKind.TERMINATE:
            return {"action": "terminate", "status": action.status or SUCCESS}
    raise ReplyError(f"this Qwen-VL tool has no word for {action.kind.value}")


def _call_arguments(block: str) -> Mapping[str, Any]:
    start = block.find("{")
    if start < 0:
        raise ReplyError("the reply holds no tool call")
    try:
        call, _ = json.JSONDecoder(strict=False).raw_decode(block, start)
    except json.JSONDecodeError as error:
        raise ReplyError(f"the tool call is no JSON: {error}") from error
    arguments = call.get("arguments", call)
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except json.JSONDecodeError as error:
            raise ReplyError(f"the tool call's arguments are no JSON: {error}") from error
    if not isinstance(arguments, dict):
        raise ReplyError(f"the tool call's arguments are {type(arguments).__name__}, not an object")
    return arguments


def _text(arguments: Mapping[str, Any]) -> str:
    text = arguments.get("text")
    if not isinstance(text, str):
        raise ReplyError(f"{arguments.get('action')} needs a text, not {text!r}")
    return text
