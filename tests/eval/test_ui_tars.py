"""UI-TARS-1.5's replies, in all forms that the model and its elders write."""

from __future__ import annotations

import pytest

from star_kv_sglang.tools.actions import Action, ActionKind
from star_kv_sglang.tools.eval.errors import ReplyError
from star_kv_sglang.tools.eval.families.ui_tars import UITars15
from star_kv_sglang.tools.eval.samples import TaskKind

SENT = (1920, 1080)
"""The model sees 1932 x 1092."""

HALF = (0.5, 0.5)


def parse(reply: str) -> tuple[Action, ...]:
    return UITars15().parse(TaskKind.COMPUTER, reply, SENT)


@pytest.mark.parametrize(
    ("reply", "action"),
    [
        pytest.param("Action: click(point='<point>966 546</point>')", Action(ActionKind.CLICK, HALF), id="point"),
        pytest.param("click(point='<point>966 546</point>')", Action(ActionKind.CLICK, HALF), id="without-prefix"),
        pytest.param(
            "Thought: Say Action: often.\nAction: click(start_box='(966,546)')",
            Action(ActionKind.CLICK, HALF),
            id="older-form",
        ),
        pytest.param(
            "Action: click(start_box='<|box_start|>(966,546)<|box_end|>')",
            Action(ActionKind.CLICK, HALF),
            id="box-tokens",
        ),
        pytest.param(
            "Action: click(start_box='[946, 536, 986, 556]')", Action(ActionKind.CLICK, HALF), id="box-is-its-centre"
        ),
        pytest.param("Action: click(point=<point>966 546</point>)", Action(ActionKind.CLICK, HALF), id="no-quotes"),
        pytest.param(
            "```\nAction: click(point='<point>966 546</point>'\n```", Action(ActionKind.CLICK, HALF), id="cut"
        ),
        pytest.param(
            "Action: left_double(point='<point>966 546</point>')", Action(ActionKind.DOUBLE_CLICK, HALF), id="double"
        ),
        pytest.param(
            "Action: right_single(point='<point>966 546</point>')", Action(ActionKind.RIGHT_CLICK, HALF), id="right"
        ),
        pytest.param(
            "Action: long_press(point='<point>966 546</point>')", Action(ActionKind.LONG_PRESS, HALF), id="long"
        ),
        pytest.param(
            "Action: drag(start_point='<point>0 0</point>', end_point='<point>966 546</point>')",
            Action(ActionKind.DRAG, (0.0, 0.0), HALF),
            id="drag",
        ),
        pytest.param("Action: hotkey(key='Ctrl C')", Action(ActionKind.KEYS, keys=("ctrl", "c")), id="hotkey"),
        pytest.param("Action: hotkey(key='ctrl+c')", Action(ActionKind.KEYS, keys=("ctrl", "c")), id="hotkey-plus"),
        pytest.param("Action: type(content='it\\'s\\n')", Action(ActionKind.WRITE, text="it's\n"), id="type-escaped"),
        pytest.param(
            "Action: type(content='it's (a, b)')", Action(ActionKind.WRITE, text="it's (a, b)"), id="type-bare-quote"
        ),
        pytest.param('Action: type(content="x")', Action(ActionKind.WRITE, text="x"), id="type-double-quotes"),
        pytest.param("Action: type(content='')", Action(ActionKind.WRITE, text=""), id="type-nothing"),
        pytest.param(
            "Action: scroll(point='<point>966 546</point>', direction='Down')",
            Action(ActionKind.SCROLL, HALF, direction="down"),
            id="scroll",
        ),
        pytest.param(
            "Action: scroll(start_box='(966,546)', end_box='(966,100)')",
            Action(ActionKind.SCROLL, HALF, direction="down"),
            id="scroll-as-swipe-upwards",
        ),
        pytest.param(
            "Action: type(content='Action: x')", Action(ActionKind.WRITE, text="Action: x"), id="type-the-word"
        ),
        pytest.param("Thought: I wait. Action: wait()", Action(ActionKind.WAIT), id="one-line"),
        pytest.param("Action: wait()", Action(ActionKind.WAIT), id="wait"),
        pytest.param("Action: press_home()", Action(ActionKind.HOME), id="home"),
        pytest.param("Action: open_app(app_name='Maps')", Action(ActionKind.OPEN_APP, text="Maps"), id="app"),
        pytest.param(
            "Action: finished(content='42')", Action(ActionKind.TERMINATE, text="42", status="success"), id="finished"
        ),
        pytest.param("Action: finished()", Action(ActionKind.TERMINATE, status="success"), id="finished-silently"),
        pytest.param("Action: call_user()", Action(ActionKind.TERMINATE, status="failure"), id="call-user"),
    ],
)
def test_one_action(reply: str, action: Action) -> None:
    assert parse(reply) == (action,)


def test_calls_between_empty_lines_are_several_actions() -> None:
    said = parse("Thought: two\nAction: click(point='<point>966 546</point>')\n\ntype(content='a\n\nb')")
    assert said == (Action(ActionKind.CLICK, HALF), Action(ActionKind.WRITE, text="a\n\nb"))


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        pytest.param("Action: click()", "names no point", id="no-point"),
        pytest.param("Action: click(point='<point>5</point>')", "holds 1 numbers", id="one-number"),
        pytest.param("Action: drag(start_point='<point>1 2</point>')", "start and an end", id="half-a-drag"),
        pytest.param("Action: scroll(point='<point>1 2</point>', direction='in')", "no direction", id="direction"),
        pytest.param("Action: type(text='a')", "lacks content=", id="wrong-argument"),
        pytest.param("Action: jump(point='<point>1 2</point>')", "no action 'jump'", id="unknown"),
        pytest.param("Action: click the button", "not an action", id="prose"),
    ],
)
def test_what_cannot_be_read_says_why(reply: str, message: str) -> None:
    with pytest.raises(ReplyError, match=message):
        parse(reply)


@pytest.mark.parametrize(
    ("kind", "has", "has_not"),
    [
        pytest.param(TaskKind.GROUNDING, "click(point=", "Thought:", id="grounding-has-no-thought"),
        pytest.param(TaskKind.COMPUTER, "hotkey(key='ctrl c')", "press_home()", id="computer"),
        pytest.param(TaskKind.MOBILE, "press_home()", "hotkey", id="mobile"),
    ],
)
def test_prompts_offer_their_device_s_actions(kind: TaskKind, has: str, has_not: str) -> None:
    prompt = UITars15().task_text(kind, "the task")
    assert has in prompt and has_not not in prompt and prompt.endswith("## User Instruction\nthe task")
