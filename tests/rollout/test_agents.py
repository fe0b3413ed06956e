"""Agents that do what their model says: the small models', and those of the model families."""

from __future__ import annotations

import asyncio
from random import Random

import pytest

from star_kv_sglang.cli.main import main
from star_kv_sglang.tools.agents.family import FamilyAgent
from star_kv_sglang.tools.agents.small import SmallAgent
from star_kv_sglang.tools.eval.families import FAMILIES
from star_kv_sglang.tools.rollout import Action, ActionKind, Agent, NoActionError, View
from tests.rollout.small_world import Number

SIZE = (320, 420)


def act(agent: Agent, reply: str) -> tuple[Action, ...]:
    view = View(Number(), "up", "reach 5", 0, SIZE, Random(0))
    return asyncio.run(agent.actions(reply, view))


@pytest.mark.parametrize(
    ("family", "reply", "action"),
    [
        ("qwen3-vl", '<tool_call>{"name": "computer_use", "arguments": {"action": "left_click", '
         '"coordinate": [500, 250]}}</tool_call>', Action(ActionKind.CLICK, point=(0.5, 0.25))),
        ("ui-tars-1.5", "Thought: the box.\nAction: type(content='Ann\\n')", Action(ActionKind.WRITE, text="Ann\n")),
        ("ui-tars-1.5", "Thought: done.\nAction: finished(content='')", Action(ActionKind.TERMINATE, status="success")),
    ],
)  # fmt: skip
def test_a_familys_reply_is_read_as_the_evaluation_reads_it(family: str, reply: str, action: Action) -> None:
    assert act(FamilyAgent(FAMILIES[family]), reply) == (action,)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_the_task_is_said_once_and_before_the_first_screenshot(family: str) -> None:
    agent = FamilyAgent(FAMILIES[family])
    said = f"{agent.system_text('close the dialog', SIZE)} {agent.user_texts('close the dialog', 0)}"
    assert "close the dialog" in said
    assert agent.user_texts("close the dialog", 1) == ("", "")
    with pytest.raises(NoActionError):
        act(agent, "I cannot see anything.")


def test_the_small_agent_clicks_in_the_middle_of_a_cell() -> None:
    assert act(SmallAgent(), " x12  y20 ") == (Action(ActionKind.CLICK, point=(100 / 320, 164 / 420)),)
    with pytest.raises(NoActionError, match="'red K' is no cell of the screen, such as x12 y20"):
        act(SmallAgent(), "red K")


EITHER = "give either a trajectory file or --env; star-kv rollout --help explains both"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), EITHER),
        (("file.json", "--env", "miniwob"), EITHER),
        (("--env", "sideways"), "--env 'sideways' is not known: choose miniwob, or name package.module:function"),
        (("--env", "no_such:world"), "--env 'no_such:world' cannot be imported: No module named 'no_such'"),
        (("--env", "miniwob", "--agent", "me"), "--agent 'me' is not known: choose scripted, small, opencua, "
         "qwen2.5-vl, qwen3-vl, ui-tars-1.5, or name package.module:function"),
        (("--env", "miniwob", "--chromium", "/no/chromium"), "--chromium /no/chromium is no file; give the path of "
         "Chromium's program"),
    ],
)  # fmt: skip
def test_wrong_words_end_in_one_line(words: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rollout", *words]) == 2
    assert capsys.readouterr().err == f"error: {message}\n"
