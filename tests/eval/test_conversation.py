"""Steps as chat messages."""

from __future__ import annotations

import base64
import io
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from star_kv_sglang.tools.actions import Action, ActionKind
from star_kv_sglang.tools.eval.conversation import DROPPED_FRAME, build_messages
from star_kv_sglang.tools.eval.errors import EvalError, ReplyError
from star_kv_sglang.tools.eval.families import FAMILIES, get_family
from star_kv_sglang.tools.eval.samples import Episode, Screenshot, Step, TaskKind
from tests.eval.cases import Colours, Words
from tests.eval.conftest import MakeImage


@pytest.fixture
def episode(tmp_path: Path, make_image: MakeImage) -> Episode:
    steps = []
    for number in range(4):
        path = make_image(tmp_path / f"{number}.png", 100 + number, 50)
        shot = Screenshot.open(path, source=tmp_path, row="row 1")
        steps.append(Step(f"e/{number}", shot, "", (Action(ActionKind.CLICK, (0.5, 0.5)),), f"thought {number}"))
    return Episode("e", "the task", tuple(steps))


def kinds(messages: list[dict[str, Any]]) -> list[str]:
    """``user: text image`` and the like."""
    return [
        f"{m['role']}: "
        + ("text" if isinstance(m["content"], str) else " ".join(p["type"].removesuffix("_url") for p in m["content"]))
        for m in messages
    ]


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_the_history_is_append_only(name: str, episode: Episode) -> None:
    family = get_family(name)
    prompts = [build_messages(family, TaskKind.COMPUTER, episode, index, None) for index in range(4)]
    for shorter, longer in pairwise(prompts):
        assert longer[: len(shorter)] == shorter
        assert [message["role"] for message in longer[len(shorter) :]] == ["assistant", "user"]


def test_the_task_comes_first_for_agents(episode: Episode) -> None:
    messages = build_messages(get_family("ui-tars-1.5"), TaskKind.COMPUTER, episode, 1, None)
    assert kinds(messages) == ["user: text image", "assistant: text", "user: image"]
    # the first screenshot of 100 x 50 becomes 420 x 196 px: sqrt(78400 / 5000) = 3.96; 396 -> 420 and 198 -> 224
    assert messages[1]["content"] == "Thought: thought 0\nAction: click(point='<point>210 112</point>')"


def test_the_instruction_comes_last_for_grounding(episode: Episode) -> None:
    single = replace(episode, steps=episode.steps[:1])
    assert kinds(build_messages(get_family("qwen3-vl"), TaskKind.GROUNDING, single, 0, 0)) == [
        "system: text",
        "user: image text",
    ]


@pytest.mark.parametrize(
    ("frames", "shown"),
    [
        pytest.param(0, [False, False, False, True], id="only-the-current"),
        pytest.param(1, [False, False, True, True], id="one-more"),
        pytest.param(9, [True] * 4, id="more-than-there-are"),
        pytest.param(None, [True] * 4, id="all"),
    ],
)
def test_old_frames_leave_but_their_turns_stay(episode: Episode, frames: int | None, shown: list[bool]) -> None:
    messages = build_messages(get_family("ui-tars-1.5"), TaskKind.COMPUTER, episode, 3, frames)
    users = [message["content"] for message in messages if message["role"] == "user"]
    assert [any(part["type"] == "image_url" for part in content) for content in users] == shown
    assert [any(part.get("text") == DROPPED_FRAME for part in content) for content in users] == [not s for s in shown]


def test_an_image_travels_as_it_lies_on_disk(episode: Episode) -> None:
    (message,) = build_messages(get_family("ui-tars-1.5"), TaskKind.COMPUTER, episode, 0, None)
    url = message["content"][1]["image_url"]["url"]
    screenshot = episode.steps[0].screenshot
    assert screenshot is not None and url.startswith("data:image/png;base64,")
    assert base64.b64decode(url.split(",")[1]) == screenshot.path.read_bytes()


def test_an_image_above_the_limit_travels_smaller(tmp_path: Path, make_image: MakeImage) -> None:
    path = make_image(tmp_path / "large.png", 400, 100)
    shot = Screenshot.open(path, source=tmp_path, row="row 1", limit=(200, 200))
    with Image.open(io.BytesIO(base64.b64decode(shot.data_url().split(",")[1]))) as image:
        assert image.size == shot.sent_size == (200, 50)


def test_a_family_may_say_more_around_a_screenshot(tmp_path: Path) -> None:
    episode = Colours().load(tmp_path, None).episodes[0]
    messages = build_messages(Words(), TaskKind.COMPUTER, episode, 2, None)
    assert kinds(messages)[0] == "user: text image text"
    assert kinds(messages)[-1] == "user: text text", "a turn without a screenshot"
    assert messages[1] == {"role": "assistant", "content": "truea0"}


def test_a_true_action_without_a_word_says_so(episode: Episode) -> None:
    odd = replace(episode.steps[0], truth=(Action(ActionKind.OPEN_APP, text="Maps"),))
    with pytest.raises(ReplyError, match="no word for open_app"):
        build_messages(
            get_family("qwen2.5-vl"), TaskKind.COMPUTER, replace(episode, steps=(odd, *episode.steps[1:])), 1, None
        )


def test_an_episode_must_begin_with_a_screenshot(episode: Episode) -> None:
    blind = replace(episode, steps=(replace(episode.steps[0], screenshot=None),))
    with pytest.raises(EvalError, match="no screenshot was shown"):
        build_messages(Words(), TaskKind.COMPUTER, blind, 0, None)
