"""OpenCUA: pyautogui code, in pixels of the resized image, plus ``computer.triple_click`` and ``computer.terminate``.

The code is read as a syntax tree, never run (action space: github.com/xlang-ai/OpenCUA). The model was trained on
desktops; for phones the prompt adds ``computer.long_press``, ``open_app``, ``press_home`` and ``press_back``.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from star_kv_sglang.tools.actions import FAILURE, SUCCESS, Action, ActionKind, Point, normalise_keys
from star_kv_sglang.tools.eval.coordinates import CoordinateSpace
from star_kv_sglang.tools.eval.errors import ReplyError
from star_kv_sglang.tools.eval.families.base import ModelFamily, render_prompt
from star_kv_sglang.tools.eval.samples import TaskKind
from star_kv_sglang.tools.resize import Size

_FENCED = re.compile(r"```(?:python|py|code)?[ \t]*\n(.*?)```", re.DOTALL)
_LINE = re.compile(r"^[ \t]*((?:pyautogui|computer)\..*)$", re.MULTILINE)
_CLICKS: Final = {1: ActionKind.CLICK, 2: ActionKind.DOUBLE_CLICK, 3: ActionKind.TRIPLE_CLICK}
_BUTTONS: Final = {"right": ActionKind.RIGHT_CLICK, "middle": ActionKind.MIDDLE_CLICK}
_POINTING: Final = {
    "doubleClick": ActionKind.DOUBLE_CLICK,
    "tripleClick": ActionKind.TRIPLE_CLICK,
    "triple_click": ActionKind.TRIPLE_CLICK,
    "rightClick": ActionKind.RIGHT_CLICK,
    "middleClick": ActionKind.MIDDLE_CLICK,
    "moveTo": ActionKind.MOVE,
    "long_press": ActionKind.LONG_PRESS,
}
_WRITTEN: Final = {
    ActionKind.CLICK: "pyautogui.click",
    ActionKind.DOUBLE_CLICK: "pyautogui.doubleClick",
    ActionKind.TRIPLE_CLICK: "computer.triple_click",
    ActionKind.RIGHT_CLICK: "pyautogui.rightClick",
    ActionKind.MIDDLE_CLICK: "pyautogui.middleClick",
    ActionKind.MOVE: "pyautogui.moveTo",
    ActionKind.LONG_PRESS: "computer.long_press",
}
_PLAIN: Final = {"wait": ActionKind.WAIT, "press_home": ActionKind.HOME, "press_back": ActionKind.BACK}
_PLAIN_WORDS: Final = {kind: word for word, kind in _PLAIN.items()}
# Pauses are part of a script, not of what it does to the screen.
_IGNORED: Final = frozenset({("time", "sleep"), ("pyautogui", "sleep")})


@dataclass(frozen=True)
class OpenCUA(ModelFamily):
    """OpenCUA-7B, 32B and 72B."""

    name = "opencua"
    summary = "OpenCUA (7B to 72B): pyautogui code"
    space = CoordinateSpace.RESIZED_PIXELS

    def system_text(self, kind: TaskKind, sent: Size) -> str | None:
        return self.system_prompt if self.system_prompt is not None else render_prompt(f"opencua_{kind.value}")

    def task_text(self, kind: TaskKind, task: str) -> str:
        return render_prompt("opencua_task", task=task, grounding=kind is TaskKind.GROUNDING)

    def parse(self, kind: TaskKind, reply: str, sent: Size) -> tuple[Action, ...]:
        fenced = _FENCED.findall(reply)
        code = fenced[-1] if fenced else "\n".join(_LINE.findall(reply))
        try:
            tree = ast.parse(code)
        except (SyntaxError, ValueError) as error:
            raise ReplyError(f"the reply's code cannot be read: {error}") from error
        actions = [action for node in tree.body for action in self._statement(node, sent)]
        if not actions:
            raise ReplyError("the reply holds no pyautogui or computer call")
        return tuple(actions)

    def _statement(self, node: ast.stmt, sent: Size) -> list[Action]:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            return []
        call = node.value if isinstance(node, ast.Expr) else None
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Attribute):
            raise ReplyError(f"not an action: {ast.unparse(node)[:80]!r}")
        module = call.func.value.id if isinstance(call.func.value, ast.Name) else ""
        if (module, call.func.attr) in _IGNORED:
            return []
        if module not in ("pyautogui", "computer"):
            raise ReplyError(f"not an action: {ast.unparse(node)[:80]!r}")
        try:
            values = [ast.literal_eval(argument) for argument in call.args]
            named = {keyword.arg or "**": ast.literal_eval(keyword.value) for keyword in call.keywords}
        except ValueError as error:
            raise ReplyError(f"{ast.unparse(node)[:80]!r} has arguments that are no plain values") from error
        return self._action(call.func.attr, values, named, sent)

    def _action(self, name: str, values: list[Any], named: dict[str, Any], sent: Size) -> list[Action]:
        def argument(position: int, *keys: str, default: Any = None) -> Any:
            for key in keys:
                if key in named:
                    return named[key]
            return values[position] if position < len(values) else default

        if name == "click":
            button, clicks = argument(4, "button", default="left"), argument(2, "clicks", default=1)
            kind = _BUTTONS.get(button) or _CLICKS.get(clicks)
            if kind is None:
                raise ReplyError(f"click() with button {button!r} and {clicks!r} clicks is not known")
            return [Action(kind, point=self._point(argument(0, "x"), argument(1, "y"), sent))]
        if name in _POINTING:
            return [Action(_POINTING[name], point=self._point(argument(0, "x"), argument(1, "y"), sent))]
        if name in _PLAIN:
            return [Action(_PLAIN[name])]
        match name:
            case "dragTo":
                return [Action(ActionKind.DRAG, end=self._point(argument(0, "x"), argument(1, "y"), sent))]
            case "scroll" | "hscroll" | "vscroll":
                amount = argument(0, "clicks", "amount")
                if not isinstance(amount, (int, float)):
                    raise ReplyError(f"{name}() needs a number, not {amount!r}")
                positive, negative = ("right", "left") if name == "hscroll" else ("up", "down")
                return [Action(ActionKind.SCROLL, direction=positive if amount > 0 else negative)]
            case "write" | "typewrite":
                return [Action(ActionKind.WRITE, text=str(argument(0, "message", "text", default="")))]
            case "press":
                keys, presses = argument(0, "keys", "key"), argument(1, "presses", default=1)
                return [Action(ActionKind.KEYS, keys=_keys(name, [keys]) * int(presses))]
            case "hotkey":
                return [Action(ActionKind.KEYS, keys=_keys(name, values or [named.get("keys", named.get("args"))]))]
            case "open_app":
                return [Action(ActionKind.OPEN_APP, text=str(argument(0, "app_name", "name", default="")))]
            case "terminate":
                status = argument(0, "status")
                if status not in (SUCCESS, FAILURE):
                    raise ReplyError(f"terminate() needs the status success or failure, not {status!r}")
                return [Action(ActionKind.TERMINATE, status=status)]
        raise ReplyError(f"there is no action {name}()")

    def _point(self, x: Any, y: Any, sent: Size) -> Point:
        if not isinstance(x, (int, float)) or not isinstance(y, (int, float)):
            raise ReplyError(f"x={x!r}, y={y!r} is no point")
        return self.read_point(x, y, sent)

    def render(self, kind: TaskKind, actions: Sequence[Action], thought: str, sent: Size) -> str:
        code = "\n".join(self._write(action, sent) for action in actions)
        block = f"```python\n{code}\n```"
        return f"Thought: {thought}\n\n{block}" if thought else block

    def _write(self, action: Action, sent: Size) -> str:
        kind = action.kind
        if kind in _WRITTEN or kind is ActionKind.DRAG:
            x, y = self.write_point(action.end if kind is ActionKind.DRAG else action.point, sent)
            return f"{_WRITTEN.get(kind, 'pyautogui.dragTo')}(x={x}, y={y})"
        if kind in _PLAIN_WORDS:
            return f"computer.{_PLAIN_WORDS[kind]}()"
        match kind:
            case ActionKind.SCROLL:
                name = "hscroll" if action.direction in ("left", "right") else "scroll"
                return f"pyautogui.{name}({5 if action.direction in ('up', 'right') else -5})"
            case ActionKind.WRITE:
                return f"pyautogui.write(message={action.text or ''!r})"
            case ActionKind.KEYS if len(action.keys) == 1:
                return f"pyautogui.press({action.keys[0]!r})"
            case ActionKind.KEYS:
                return f"pyautogui.hotkey({', '.join(map(repr, action.keys))})"
            case ActionKind.OPEN_APP:
                return f"computer.open_app(app_name={action.text or ''!r})"
            case ActionKind.TERMINATE:
                return f"computer.terminate(status={action.status or SUCCESS!r})"
        raise ReplyError(f"OpenCUA has no word for {kind.value}")


def _keys(name: str, values: Sequence[Any]) -> tuple[str, ...]:
    flat = [key for value in values for key in (value if isinstance(value, (list, tuple)) else [value])]
    if not flat or not all(isinstance(key, str) for key in flat):
        raise ReplyError(f"{name}() needs keys, not {values!r}")
    return normalise_keys(flat)
