"""What all model families promise."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from star_kv_sglang.tools.actions import Action, ActionKind, normalise_keys, swipe_direction
from star_kv_sglang.tools.eval.errors import EvalError, ReplyError
from star_kv_sglang.tools.eval.families import FAMILIES, get_family
from star_kv_sglang.tools.eval.samples import TaskKind

SENT = (1920, 1080)
NAMES = sorted(FAMILIES)


def close(one: Action, two: Action) -> bool:
    """The same action up to the rounding of coordinates to whole numbers."""

    def near(left: tuple[float, float] | None, right: tuple[float, float] | None) -> bool:
        if left is None or right is None:
            return left is right
        return max(abs(a - b) for a, b in zip(left, right, strict=True)) < 0.001

    same = (one.kind, one.text, one.keys, one.direction, one.status) == (
        two.kind,
        two.text,
        two.keys,
        two.direction,
        two.status,
    )
    return same and near(one.point, two.point) and near(one.end, two.end)


DESKTOP = [
    Action(ActionKind.CLICK, point=(0.25, 0.75)),
    Action(ActionKind.DOUBLE_CLICK, point=(0.0, 1.0)),
    Action(ActionKind.RIGHT_CLICK, point=(1.0, 0.0)),
    Action(ActionKind.MOVE, point=(0.5, 0.5)),
    Action(ActionKind.KEYS, keys=("ctrl", "shift", "t")),
    Action(ActionKind.KEYS, keys=("enter",)),
    Action(ActionKind.WAIT),
    Action(ActionKind.TERMINATE, status="success"),
    Action(ActionKind.TERMINATE, status="failure"),
]
PHONE = [
    Action(ActionKind.CLICK, point=(0.25, 0.75)),
    Action(ActionKind.LONG_PRESS, point=(0.1, 0.9)),
    Action(ActionKind.OPEN_APP, text="Maps"),
    Action(ActionKind.HOME),
    Action(ActionKind.BACK),
    Action(ActionKind.WAIT),
]


def ident(action: Action) -> str:
    return f"{action.kind.value}{'-' + action.status if action.status else ''}"


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("action", DESKTOP, ids=ident)
def test_desktop_actions_survive_the_history(name: str, action: Action) -> None:
    family = FAMILIES[name]
    (back,) = family.parse(TaskKind.COMPUTER, family.render(TaskKind.COMPUTER, [action], "I look at it.", SENT), SENT)
    assert close(back, action)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("action", PHONE, ids=ident)
def test_phone_actions_survive_the_history(name: str, action: Action) -> None:
    family = FAMILIES[name]
    (back,) = family.parse(TaskKind.MOBILE, family.render(TaskKind.MOBILE, [action], "", SENT), SENT)
    assert close(back, action)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", [TaskKind.COMPUTER, TaskKind.MOBILE])
@pytest.mark.parametrize("direction", ["up", "down", "left", "right"])
def test_scrolls_keep_their_direction(name: str, kind: TaskKind, direction: str) -> None:
    family = FAMILIES[name]
    said = family.render(kind, [Action(ActionKind.SCROLL, direction=direction)], "", SENT)
    (back,) = family.parse(kind, said, SENT)
    assert (back.kind, back.direction) == (ActionKind.SCROLL, direction)


@pytest.mark.parametrize("name", NAMES)
@given(text=st.text(st.characters(codec="utf-8", exclude_characters="\r"), max_size=40))
def test_any_text_survives_the_history(name: str, text: str) -> None:
    family = FAMILIES[name]
    said = family.render(TaskKind.COMPUTER, [Action(ActionKind.WRITE, text=text)], "typing", SENT)
    assert family.parse(TaskKind.COMPUTER, said, SENT) == (Action(ActionKind.WRITE, text=text),)


@pytest.mark.parametrize("name", NAMES)
def test_several_actions_keep_their_order(name: str) -> None:
    family = FAMILIES[name]
    actions = [Action(ActionKind.WRITE, text="a (b)"), Action(ActionKind.KEYS, keys=("enter",))]
    said = family.render(TaskKind.COMPUTER, actions, "", SENT)
    assert family.parse(TaskKind.COMPUTER, said, SENT) == tuple(actions)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("reply", ["", "   ", "I do not know.", "Action: fly(point='<point>1 2</point>')", "{", "```"])
def test_replies_without_an_action(name: str, reply: str) -> None:
    with pytest.raises(ReplyError):
        FAMILIES[name].parse(TaskKind.COMPUTER, reply, SENT)


@pytest.mark.parametrize("name", NAMES)
@given(reply=st.text(max_size=80))
def test_no_reply_breaks_a_parser(name: str, reply: str) -> None:
    with suppress(ReplyError):
        assert FAMILIES[name].parse(TaskKind.COMPUTER, reply, SENT)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", list(TaskKind))
def test_every_prompt_says_the_task_once(name: str, kind: TaskKind) -> None:
    family = FAMILIES[name]
    prompt = f"{family.system_text(kind, SENT) or ''}\n{family.task_text(kind, 'Open the {{ trash }} & look')}"
    assert prompt.count("Open the {{ trash }} & look") == 1


@pytest.mark.parametrize("name", NAMES)
def test_a_prompt_of_ones_own_replaces_the_familys(name: str) -> None:
    family = FAMILIES[name].with_prompt("You click.")
    assert family.system_text(TaskKind.COMPUTER, SENT) == "You click."
    assert "Action Space" not in family.task_text(TaskKind.COMPUTER, "task")


def test_bounds_of_ones_own_change_the_mapping() -> None:
    family = get_family("ui-tars-1.5").with_pixels(None, 280 * 280)
    # 1920 x 1080 at 78,400 pixels: shrink = 5.1430; 13.33 -> 13 and 7.5 -> 7 patches
    (action,) = family.parse(TaskKind.GROUNDING, "Action: click(point='<point>182 98</point>')", SENT)
    assert action.point == (182 / 364, 98 / 196)


def test_an_unknown_family_lists_those_that_exist() -> None:
    with pytest.raises(EvalError, match=r"'gpt'.*opencua.*qwen3-vl.*ui-tars-1\.5"):
        get_family("gpt")


@pytest.mark.parametrize(
    ("keys", "normalised"),
    [
        pytest.param(["Control", "C"], ("ctrl", "c"), id="long-name"),
        pytest.param(["Return"], ("enter",), id="return"),
        pytest.param([" "], ("space",), id="space"),
        pytest.param(["", "a "], ("a",), id="white-space"),
    ],
)
def test_keys_have_one_name(keys: list[str], normalised: tuple[str, ...]) -> None:
    assert normalise_keys(keys) == normalised


@pytest.mark.parametrize(
    ("end", "direction"),
    [((0.5, 0.1), "down"), ((0.5, 0.9), "up"), ((0.1, 0.5), "right"), ((0.9, 0.5), "left")],
    ids=["finger-up", "finger-down", "finger-left", "finger-right"],
)
def test_a_swipe_scrolls_against_the_finger(end: tuple[float, float], direction: str) -> None:
    assert swipe_direction((0.5, 0.5), end) == direction
