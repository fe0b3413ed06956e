"""Qwen2.5-VL's and Qwen3-VL's tool calls."""

from __future__ import annotations

import json
from typing import Any

import pytest

from star_kv_sglang.tools.actions import Action, ActionKind
from star_kv_sglang.tools.eval.errors import ReplyError
from star_kv_sglang.tools.eval.families.qwen_vl import Qwen3VL, Qwen25VL
from star_kv_sglang.tools.eval.samples import TaskKind

SENT = (1920, 1080)
HALF = (0.5, 0.5)


def call(name: str = "computer_use", **arguments: Any) -> str:
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"


def parse(reply: str) -> tuple[Action, ...]:
    return Qwen25VL().parse(TaskKind.COMPUTER, reply, SENT)


@pytest.mark.parametrize(
    ("arguments", "action"),
    [
        pytest.param({"action": "left_click", "coordinate": [966, 546]}, Action(ActionKind.CLICK, HALF), id="click"),
        pytest.param(
            {"action": "left_click", "coordinate": [946, 536, 986, 556]}, Action(ActionKind.CLICK, HALF), id="box"
        ),
        pytest.param({"action": "mouse_move", "coordinate": [0, 0]}, Action(ActionKind.MOVE, (0, 0)), id="move"),
        pytest.param(
            {"action": "left_click_drag", "coordinate": [966, 546]}, Action(ActionKind.DRAG, end=HALF), id="drag"
        ),
        pytest.param({"action": "scroll", "pixels": -300}, Action(ActionKind.SCROLL, direction="down"), id="scroll"),
        pytest.param({"action": "hscroll", "pixels": 300}, Action(ActionKind.SCROLL, direction="right"), id="hscroll"),
        pytest.param(
            {"action": "swipe", "coordinate": [966, 546], "coordinate2": [966, 273]},
            Action(ActionKind.SCROLL, HALF, (0.5, 0.25), direction="down"),
            id="swipe-upwards-scrolls-down",
        ),
        pytest.param(
            {"action": "key", "keys": ["Control", "s"]}, Action(ActionKind.KEYS, keys=("ctrl", "s")), id="keys"
        ),
        pytest.param({"action": "key", "text": "enter"}, Action(ActionKind.KEYS, keys=("enter",)), id="mobile-key"),
        pytest.param({"action": "type", "text": 'a "b"'}, Action(ActionKind.WRITE, text='a "b"'), id="type"),
        pytest.param({"action": "system_button", "button": "Back"}, Action(ActionKind.BACK), id="back"),
        pytest.param({"action": "open", "text": "Maps"}, Action(ActionKind.OPEN_APP, text="Maps"), id="open"),
        pytest.param({"action": "answer", "text": "42"}, Action(ActionKind.ANSWER, text="42"), id="answer"),
        pytest.param(
            {"action": "terminate", "status": "failure"}, Action(ActionKind.TERMINATE, status="failure"), id="terminate"
        ),
    ],
)
def test_one_call(arguments: dict[str, Any], action: Action) -> None:
    assert parse(call(**arguments)) == (action,)


@pytest.mark.parametrize(
    "reply",
    [
        pytest.param(
            'I click it.\n<tool_call>{"name": "computer_use", "arguments": {"action": "wait"}}', id="unclosed"
        ),
        pytest.param('```json\n{"name": "computer_use", "arguments": {"action": "wait"}}\n```', id="no-tags"),
        pytest.param('{"action": "wait"}', id="arguments-alone"),
        pytest.param(
            '<tool_call>{"name": "c", "arguments": "{\\"action\\": \\"wait\\"}"}</tool_call>',
            id="arguments-in-a-string",
        ),
        pytest.param('<tool_call>{"arguments": {"action": "wait"}} and more</tool_call>', id="words-after"),
    ],
)
def test_forms_of_a_call(reply: str) -> None:
    assert parse(reply) == (Action(ActionKind.WAIT),)


def test_two_calls_are_two_actions() -> None:
    said = parse(call(action="mouse_move", coordinate=[0, 0]) + call(action="left_click_drag", coordinate=[966, 546]))
    assert [action.kind for action in said] == [ActionKind.MOVE, ActionKind.DRAG]


def test_qwen3_counts_thousandths() -> None:
    said = call(action="left_click", coordinate=[500, 250])
    assert Qwen3VL().parse(TaskKind.COMPUTER, said, SENT) == (Action(ActionKind.CLICK, (0.5, 0.25)),)


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        pytest.param("no call", "no tool call", id="prose"),
        pytest.param("<tool_call>{'action': 'wait'}</tool_call>", "no JSON", id="python-dict"),
        pytest.param(call(action="left_click"), r"needs coordinate \[x, y\]", id="no-coordinate"),
        pytest.param(call(action="left_click", coordinate=["1", "2"]), "coordinate", id="strings"),
        pytest.param(call(action="left_click", coordinate=[1, 2, 3]), "3 numbers", id="three-numbers"),
        pytest.param(call(action="scroll", pixels="many"), "number of pixels", id="pixels"),
        pytest.param(call(action="key", keys=[]), "list of keys", id="no-keys"),
        pytest.param(call(action="terminate", status="done"), "success or failure", id="status"),
        pytest.param(call(action="dance"), "no action 'dance'", id="unknown"),
        pytest.param('{"arguments": [1]}', "not an object", id="list"),
    ],
)
def test_what_cannot_be_read_says_why(reply: str, message: str) -> None:
    with pytest.raises(ReplyError, match=message):
        parse(reply)


@pytest.mark.parametrize(
    ("family", "resolution"),
    [pytest.param(Qwen25VL(), "1932x1092", id="qwen2.5"), pytest.param(Qwen3VL(), "1000x1000", id="qwen3")],
)
def test_the_system_message_names_the_resolution_of_the_coordinates(family: Qwen25VL, resolution: str) -> None:
    text = family.system_text(TaskKind.COMPUTER, SENT)
    assert text is not None and resolution in text
    signature = json.loads(text.split("<tools>\n")[1].split("\n</tools>")[0])
    assert signature["function"]["name"] == "computer_use"


def test_phones_get_their_own_tool() -> None:
    text = Qwen3VL().system_text(TaskKind.MOBILE, SENT)
    assert text is not None and '"mobile_use"' in text and "system_button" in text and "left_click" not in text
