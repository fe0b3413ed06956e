"""UI-TARS-1.5: ``Thought: ... Action: click(point='<point>x y</point>')``, in pixels of the resized image.

The action language is the one documented with the model (github.com/bytedance/UI-TARS); the older forms
``start_box='(x,y)'`` and ``<|box_start|>(x,y)<|box_end|>`` are read too.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from star_kv_sglang.tools.actions import FAILURE, SUCCESS, Action, ActionKind, normalise_keys, swipe_direction
from star_kv_sglang.tools.eval.coordinates import CoordinateSpace
from star_kv_sglang.tools.eval.errors import ReplyError
from star_kv_sglang.tools.eval.families.base import ModelFamily, numbers_to_point, render_prompt
from star_kv_sglang.tools.eval.samples import TaskKind
from star_kv_sglang.tools.resize import Size

_CALL = re.compile(r"(\w+)\s*\((.*?)\)?", re.DOTALL)
# A value ends at its quote only when another argument or the end follows: typed text may hold bare quotes.
_ARGUMENT = re.compile(r"\s*,?\s*(\w+)\s*=\s*(?:(['\"])(.*?)\2|([^'\"].*?))\s*(?=,\s*\w+\s*=|$)", re.DOTALL)
_NEXT_CALL = re.compile(r"\n\s*\n(?=\s*\w+\()")
_ACTION_LINE = re.compile(r"^\s*Action:", re.MULTILINE)
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)
_ESCAPED: Final = {"n": "\n", "t": "\t"}

_POINT_NAMES: Final = ("point", "start_point", "start_box")
_END_NAMES: Final = ("end_point", "end_box")
_POINTING: Final = {
    "click": ActionKind.CLICK,
    "left_single": ActionKind.CLICK,
    "left_double": ActionKind.DOUBLE_CLICK,
    "right_single": ActionKind.RIGHT_CLICK,
    "long_press": ActionKind.LONG_PRESS,
    "hover": ActionKind.MOVE,
}
_PLAIN: Final = {
    "wait": Action(ActionKind.WAIT),
    "press_home": Action(ActionKind.HOME),
    "press_back": Action(ActionKind.BACK),
    "press_enter": Action(ActionKind.KEYS, keys=("enter",)),
    "call_user": Action(ActionKind.TERMINATE, status=FAILURE),
}
_WRITTEN: Final = {
    ActionKind.CLICK: "click",
    ActionKind.DOUBLE_CLICK: "left_double",
    # There is no triple click; a double click is the nearest that the model knows.
    ActionKind.TRIPLE_CLICK: "left_double",
    ActionKind.RIGHT_CLICK: "right_single",
    ActionKind.LONG_PRESS: "long_press",
    ActionKind.MOVE: "hover",
}


@dataclass(frozen=True)
class UITars15(ModelFamily):
    """UI-TARS-1.5, which is a Qwen2.5-VL."""

    name = "ui-tars-1.5"
    summary = "UI-TARS-1.5 (7B): Thought / Action with <point>x y</point>"
    space = CoordinateSpace.RESIZED_PIXELS

    def system_text(self, kind: TaskKind, sent: Size) -> str | None:
        # The family puts its rules into the first user turn; the chat template brings its own system line.
        return self.system_prompt

    def task_text(self, kind: TaskKind, task: str) -> str:
        if self.system_prompt is not None:
            return task
        return render_prompt(f"ui_tars_{kind.value}", instruction=task)

    def parse(self, kind: TaskKind, reply: str, sent: Size) -> tuple[Action, ...]:
        # Where a line begins with the word, others in a thought or a typed text do not count.
        starts = [*_ACTION_LINE.finditer(reply)]
        said = reply[starts[-1].end() :] if starts else reply.rsplit("Action:", 1)[-1]
        said = said.strip().strip("`").strip()
        calls = [call.strip() for call in _NEXT_CALL.split(said) if call.strip()]
        if not calls:
            raise ReplyError("the reply holds no action")
        return tuple(self._parse_call(call, sent) for call in calls)

    def _parse_call(self, call: str, sent: Size) -> Action:
        match = _CALL.fullmatch(call)
        if match is None:
            raise ReplyError(f"not an action: {call[:80]!r}")
        name, arguments = match[1], _arguments(match[2])
        if name in _PLAIN:
            return _PLAIN[name]
        start = self._point(arguments, _POINT_NAMES, sent)
        end = self._point(arguments, _END_NAMES, sent)
        if name in _POINTING:
            if start is None:
                raise ReplyError(f"{name}() names no point")
            return Action(_POINTING[name], point=start)
        match name:
            case "drag" | "select":
                if start is None or end is None:
                    raise ReplyError(f"{name}() needs a start and an end point")
                return Action(ActionKind.DRAG, point=start, end=end)
            case "scroll":
                direction = arguments.get("direction", "").strip().lower()
                if not direction and start is not None and end is not None:
                    direction = swipe_direction(start, end)
                if direction not in ("up", "down", "left", "right"):
                    raise ReplyError(f"scroll() names no direction but {direction!r}")
                return Action(ActionKind.SCROLL, point=start, direction=direction)
            case "type":
                return Action(ActionKind.WRITE, text=_unescape(_required(name, arguments, "content")))
            case "hotkey" | "press":
                keys = normalise_keys(re.split(r"[\s+]+", _required(name, arguments, "key", "hotkey", "press")))
                return Action(ActionKind.KEYS, keys=keys)
            case "open_app":
                return Action(ActionKind.OPEN_APP, text=_unescape(_required(name, arguments, "app_name")))
            case "finished":
                text = _unescape(arguments.get("content", ""))
                return Action(ActionKind.TERMINATE, text=text or None, status=SUCCESS)
        raise ReplyError(f"there is no action {name!r}")

    def _point(self, arguments: dict[str, str], names: Sequence[str], sent: Size) -> tuple[float, float] | None:
        for name in names:
            if name in arguments:
                numbers = [float(number) for number in _NUMBER.findall(arguments[name])]
                return self.read_point(*numbers_to_point(numbers, f"{name}={arguments[name]!r}"), sent)
        return None

    def render(self, kind: TaskKind, actions: Sequence[Action], thought: str, sent: Size) -> str:
        said = "\n\n".join(self._write(action, sent) for action in actions)
        return f"Thought: {thought}\nAction: {said}" if thought else f"Action: {said}"

    def _write(self, action: Action, sent: Size) -> str:
        def place(name: str, point: tuple[float, float] | None) -> str:
            x, y = self.write_point(point, sent)
            return f"{name}='<point>{x} {y}</point>'"

        kind = action.kind
        if kind in _WRITTEN:
            return f"{_WRITTEN[kind]}({place('point', action.point)})"
        match kind:
            case ActionKind.DRAG:
                start = action.point if action.point is not None else action.end
                return f"drag({place('start_point', start)}, {place('end_point', action.end)})"
            case ActionKind.SCROLL:
                return f"scroll({place('point', action.point or (0.5, 0.5))}, direction='{action.direction or 'down'}')"
            case ActionKind.WRITE:
                return f"type(content='{_escape(action.text or '')}')"
            case ActionKind.KEYS:
                return f"hotkey(key='{' '.join(action.keys)}')"
            case ActionKind.OPEN_APP:
                return f"open_app(app_name='{_escape(action.text or '')}')"
            case ActionKind.HOME:
                return "press_home()"
            case ActionKind.BACK:
                return "press_back()"
            case ActionKind.WAIT:
                return "wait()"
            case ActionKind.TERMINATE if action.status == FAILURE:
                return "call_user()"
            case ActionKind.TERMINATE | ActionKind.ANSWER:
                return f"finished(content='{_escape(action.text or '')}')"
        raise ReplyError(f"UI-TARS has no word for {kind.value}")


def _arguments(text: str) -> dict[str, str]:
    found: dict[str, str] = {}
    position = 0
    for match in _ARGUMENT.finditer(text):
        if text[position : match.start()].strip(", \n"):
            break
        found[match[1]] = match[3] if match[2] else match[4]
        position = match.end()
    if text[position:].strip(", \n"):
        raise ReplyError(f"the arguments {text[:80]!r} cannot be read")
    return found


def _required(name: str, arguments: dict[str, str], *keys: str) -> str:
    for key in keys:
        if key in arguments:
            return arguments[key]
    raise ReplyError(f"{name}() lacks {keys[0]}=")


def _unescape(text: str) -> str:
    return _ESCAPE.sub(lambda match: _ESCAPED.get(match[1], match[1]), text)


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n")
