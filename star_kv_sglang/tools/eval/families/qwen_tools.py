"""The signatures of Qwen-VL's tools ``computer_use`` and ``mobile_use``, as the system message lists them."""

from __future__ import annotations

from typing import Any, Final

from star_kv_sglang.tools.resize import Size

_COMPUTER_ACTIONS: Final = {
    "key": "press the keys in `keys` together",
    "type": "type the string in `text`",
    "mouse_move": "move the pointer to `coordinate`",
    "left_click": "click at `coordinate` with the left button",
    "left_click_drag": "drag with the left button from the pointer to `coordinate`",
    "right_click": "click at `coordinate` with the right button",
    "middle_click": "click at `coordinate` with the middle button",
    "double_click": "double-click at `coordinate` with the left button",
    "triple_click": "triple-click at `coordinate` with the left button",
    "scroll": "turn the wheel by `pixels`; positive is up, negative is down",
    "hscroll": "turn the wheel sideways by `pixels`; positive is right, negative is left",
    "wait": "wait `time` seconds for the screen to change",
    "terminate": "end the task and report its `status`",
    "answer": "answer a question with `text`",
}
_MOBILE_ACTIONS: Final = {
    "click": "tap at `coordinate`",
    "long_press": "hold a finger at `coordinate` for `time` seconds",
    "swipe": "swipe from `coordinate` to `coordinate2`",
    "type": "type the string in `text` into the active field",
    "answer": "answer a question with `text`",
    "system_button": "press the system's `button`",
    "open": "open the app named in `text`",
    "wait": "wait `time` seconds for the screen to change",
    "terminate": "end the task and report its `status`",
}
_POINT: Final = {"type": "array", "description": "(x, y): x from the left edge and y from the top edge of the screen."}


def tool_signature(*, mobile: bool, screen: Size) -> dict[str, Any]:
    """A function's signature in JSON schema; ``screen`` is the extent of the coordinates that the model shall write."""
    actions = _MOBILE_ACTIONS if mobile else _COMPUTER_ACTIONS
    device = "touchscreen of a phone" if mobile else "mouse and keyboard of a computer"
    own: dict[str, Any] = (
        {"coordinate2": _POINT, "button": {"type": "string", "enum": ["Back", "Home", "Menu", "Enter"]}}
        if mobile
        else {"keys": {"type": "array"}, "pixels": {"type": "number"}}
    )
    properties: dict[str, Any] = {
        "action": {
            "type": "string",
            "enum": list(actions),
            "description": "\n".join(f"* `{name}`: {meaning}." for name, meaning in actions.items()),
        },
        "coordinate": _POINT,
        "text": {"type": "string"},
        "time": {"type": "number"},
        "status": {"type": "string", "enum": ["success", "failure"]},
        **own,
    }
    description = (
        f"Use the {device}. There is nothing but the screen: every screenshot shows its state.\n"
        f"* The screen's resolution is {screen[0]}x{screen[1]}.\n"
        "* Find an element in the screenshot before pointing at it, and point at its centre."
    )
    return {
        "type": "function",
        "function": {
            "name": "mobile_use" if mobile else "computer_use",
            "description": description,
            "parameters": {"type": "object", "properties": properties, "required": ["action"]},
        },
    }
