"""OpenCUA's code blocks: read, never run."""

from __future__ import annotations

import pytest

from star_kv_sglang.tools.actions import Action, ActionKind
from star_kv_sglang.tools.eval.errors import ReplyError
from star_kv_sglang.tools.eval.families.opencua import OpenCUA
from star_kv_sglang.tools.eval.samples import TaskKind

SENT = (1920, 1080)
HALF = (0.5, 0.5)


def parse(reply: str) -> tuple[Action, ...]:
    return OpenCUA().parse(TaskKind.COMPUTER, reply, SENT)


@pytest.mark.parametrize(
    ("code", "action"),
    [
        pytest.param("pyautogui.click(x=966, y=546)", Action(ActionKind.CLICK, HALF), id="click"),
        pytest.param("pyautogui.click(966, 546)", Action(ActionKind.CLICK, HALF), id="click-by-place"),
        pytest.param(
            "pyautogui.click(966, 546, button='right')", Action(ActionKind.RIGHT_CLICK, HALF), id="right-button"
        ),
        pytest.param("pyautogui.click(966, 546, clicks=2)", Action(ActionKind.DOUBLE_CLICK, HALF), id="two-clicks"),
        pytest.param("pyautogui.click(966, 546, 3)", Action(ActionKind.TRIPLE_CLICK, HALF), id="three-by-place"),
        pytest.param("computer.triple_click(x=966, y=546)", Action(ActionKind.TRIPLE_CLICK, HALF), id="triple"),
        pytest.param("pyautogui.moveTo(966, 546)", Action(ActionKind.MOVE, HALF), id="move"),
        pytest.param("pyautogui.dragTo(966, 546, button='left')", Action(ActionKind.DRAG, end=HALF), id="drag"),
        pytest.param("pyautogui.scroll(-5)", Action(ActionKind.SCROLL, direction="down"), id="scroll"),
        pytest.param("pyautogui.hscroll(clicks=5)", Action(ActionKind.SCROLL, direction="right"), id="hscroll"),
        pytest.param("pyautogui.write(message='a\\nb')", Action(ActionKind.WRITE, text="a\nb"), id="write"),
        pytest.param("pyautogui.press('Enter')", Action(ActionKind.KEYS, keys=("enter",)), id="press"),
        pytest.param("pyautogui.press(keys=['up', 'up'])", Action(ActionKind.KEYS, keys=("up", "up")), id="press-list"),
        pytest.param("pyautogui.press('tab', presses=2)", Action(ActionKind.KEYS, keys=("tab", "tab")), id="presses"),
        pytest.param("pyautogui.hotkey('ctrl', 'c')", Action(ActionKind.KEYS, keys=("ctrl", "c")), id="hotkey"),
        pytest.param("pyautogui.hotkey(['ctrl', 'c'])", Action(ActionKind.KEYS, keys=("ctrl", "c")), id="hotkey-list"),
        pytest.param(
            "computer.terminate(status='success')", Action(ActionKind.TERMINATE, status="success"), id="terminate"
        ),
        pytest.param("computer.wait()", Action(ActionKind.WAIT), id="wait"),
    ],
)
def test_one_call(code: str, action: Action) -> None:
    assert parse(f"Thought: it is there\nAction: do it\nCode:\n```python\n{code}\n```") == (action,)
    assert parse(f"Action: do it\n{code}") == (action,), "without a fence"


def test_the_last_block_counts_and_pauses_do_not() -> None:
    reply = (
        "```python\npyautogui.click(0, 0)\n```\nBetter:\n```code\nimport time\npyautogui.moveTo(0, 0)\n"
        "time.sleep(1)\npyautogui.dragTo(966, 546)\n```"
    )
    assert [action.kind for action in parse(reply)] == [ActionKind.MOVE, ActionKind.DRAG]


@pytest.mark.parametrize(
    ("code", "message"),
    [
        pytest.param("pyautogui.click(x=966", "cannot be read", id="syntax"),
        pytest.param("pyautogui.click(x, y)", "no plain values", id="variables"),
        pytest.param("pyautogui.click()", "is no point", id="no-point"),
        pytest.param("__import__('os').remove('x')", "not an action", id="other-code"),
        pytest.param("x = 1", "not an action", id="assignment"),
        pytest.param("os.remove('x')", "not an action", id="other-module"),
        pytest.param("pyautogui.alert('x')", r"no action alert\(\)", id="unknown"),
        pytest.param("computer.terminate('done')", "success or failure", id="status"),
        pytest.param("pyautogui.click(1, 2, clicks=9)", "not known", id="nine-clicks"),
        pytest.param("pyautogui.hotkey(1)", "needs keys", id="keys"),
        pytest.param("import pyautogui", "no pyautogui or computer call", id="import-alone"),
    ],
)
def test_what_cannot_be_read_says_why(code: str, message: str) -> None:
    with pytest.raises(ReplyError, match=message):
        parse(f"```python\n{code}\n```")
