"""AgentNetBench: trajectory files, and the metric by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from star_kv_sglang.tools.actions import Action, ActionKind
from star_kv_sglang.tools.eval.benchmarks.agentnet_metric import (
    CLOSE,
    TrueAction,
    distance_score,
    edit_distance,
    score_actions,
    write_score,
)
from star_kv_sglang.tools.eval.benchmarks.agentnetbench import AgentNetBench
from star_kv_sglang.tools.eval.errors import DataError
from tests.eval.conftest import MakeImage


def click(
    x: float = 0.5, y: float = 0.5, kind: str = "click", boxes: list[list[float]] | None = None
) -> dict[str, Any]:
    metadata = {"bboxes": [{"rel_bbox": box, "abs_bbox": [0, 0, 1, 1]} for box in boxes or []]}
    return {"type": kind, "params": {"position": {"x": x, "y": y}}, "metadata": metadata}


def write(text: str) -> dict[str, Any]:
    return {"type": "write", "params": {"text": text}, "metadata": {}}


def press(*keys: str, kind: str = "press") -> dict[str, Any]:
    return {"type": kind, "params": {"keys": list(keys)}, "metadata": {}}


def step(number: int, *truth: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "step_num": number,
        "image": f"t_{number}.png",
        "action": "pyautogui.click(0.5, 0.5)",
        "milestone": False,
        "inner_monologue": {"observation": "o", "thought": "t", "low_level_instruction": f"do {number}"},
        "ground_truth_actions": list(truth),
        "alternative_options": [],
        **more,
    }


def save(folder: Path, make_image: MakeImage, *steps: Any, name: str = "t", images: int = 3) -> Path:
    for number in range(images):
        make_image(folder / "images" / f"t_{number}.png")
    task = {"task_id": name, "high_level_task_description": "Buy it", "user_task_description": "buy", "steps": [*steps]}
    (folder / f"{name}.json").write_text(json.dumps(task), encoding="utf-8")
    return folder


def test_a_trajectory_is_an_episode(tmp_path: Path, make_image: MakeImage) -> None:
    truth = [click(0.1, 0.2, "moveTo"), {**click(0.3, 0.4, "dragTo")}]
    data = save(tmp_path, make_image, step(0, *truth), step(1, write("hi"), press("Return")))
    dataset = AgentNetBench().load(data, None)
    assert not dataset.problems and dataset.num_scored == 2
    (episode,) = dataset.episodes
    assert (episode.id, episode.task) == ("t", "Buy it")
    assert [item.id for item in episode.steps] == ["t/0", "t/1"]
    assert episode.steps[0].truth == (
        Action(ActionKind.MOVE, (0.1, 0.2)),
        Action(ActionKind.DRAG, end=(0.3, 0.4)),
    )
    assert episode.steps[1].truth[1] == Action(ActionKind.KEYS, keys=("enter",))
    assert episode.steps[1].thought == "do 1" and episode.steps[1].groups == {"action": "write"}


@pytest.mark.parametrize(
    "alternatives",
    [
        pytest.param([[press("esc")]], id="list-of-actions"),
        pytest.param([{"ground_truth_actions": [press("esc")]}], id="object"),
        pytest.param([press("esc")], id="one-action"),
    ],
)
def test_the_best_of_the_alternatives_counts(tmp_path: Path, make_image: MakeImage, alternatives: list[Any]) -> None:
    data = save(tmp_path, make_image, step(0, click(), alternative_options=alternatives))
    (episode,) = AgentNetBench().load(data, None).episodes
    escape = AgentNetBench().score(episode.steps[0], [Action(ActionKind.KEYS, keys=("esc",))], "")
    assert (escape.value, dict(escape.parts)) == (1.0, {"content": 1.0})
    wait = AgentNetBench().score(episode.steps[0], [Action(ActionKind.WAIT)], "")
    assert (wait.value, dict(wait.parts)) == (0.0, {"coordinate": 0.0}), "of equals the true option"


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        pytest.param(step(1), "'ground_truth_actions' is empty", id="no-truth"),
        pytest.param(step(1, {"type": "fly", "params": {}}), "there is no action type \"?'?fly", id="type"),
        pytest.param(step(1, {"type": "click", "params": {}}), "field 'position' is missing", id="position"),
        pytest.param(step(1, click(boxes=[[0, 0, 1]])), "'rel_bbox' must be 4 numbers", id="box"),
        pytest.param(step(9, click()), r"t_9\.png does not exist", id="image"),
        pytest.param(step(1, {"type": "terminate", "params": {"status": "ok"}}), "success or failure", id="status"),
    ],
)
def test_a_damaged_step_ends_its_trajectory(tmp_path: Path, make_image: MakeImage, bad: Any, reason: str) -> None:
    dataset = AgentNetBench().load(save(tmp_path, make_image, step(0, click()), bad, step(2, click())), None)
    assert [item.id for item in dataset.episodes[0].steps] == ["t/0"]
    first, rest = dataset.problems
    assert first.path == tmp_path / "t.json" and "step 1" in first.row
    with pytest.raises(type(first), match=reason):
        raise first
    assert "1 later step(s) left out" in rest.reason


def test_a_damaged_file_leaves_the_others(tmp_path: Path, make_image: MakeImage) -> None:
    data = save(tmp_path, make_image, step(0, click()))
    save(tmp_path, make_image, step(0, click()), name="u")
    (data / "a.json").write_text("{", encoding="utf-8")
    (data / "b.json").write_text("[]", encoding="utf-8")
    (data / "z.json").write_text((data / "u.json").read_text(), encoding="utf-8")
    dataset = AgentNetBench().load(data, None)
    assert sorted(episode.id for episode in dataset.episodes) == ["t", "u"]
    reasons = [str(problem) for problem in dataset.problems]
    assert "is no JSON" in reasons[0] and "must be an object" in reasons[1] and "occurs twice" in reasons[2]


def test_an_empty_folder_says_what_it_wants(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="folder of trajectories"):
        AgentNetBench().load(tmp_path, None)


@pytest.mark.parametrize(
    ("distance", "score"),
    [
        pytest.param(0.0, 1.0, id="there"),
        pytest.param(CLOSE, 1.0, id="close"),
        pytest.param(CLOSE + 1 / 120, math.exp(-1), id="one-e"),
        pytest.param(0.1, math.exp(-120 * (0.1 - 0.0141421356)), id="far"),
    ],
)
def test_points_fall_off_with_distance(distance: float, score: float) -> None:
    assert distance_score(distance) == pytest.approx(score, rel=1e-6)


@pytest.mark.parametrize(
    ("true", "written", "score"),
    [
        pytest.param("hello", "hello", 1.0, id="same"),
        pytest.param("Hello ", " hello", 1.0, id="case-and-white-space"),
        pytest.param("hello", "hallo", 1.0, id="0.8-is-enough"),
        pytest.param("abcd", "abxx", 0.5 / 0.8, id="half"),
        pytest.param("abcd", "", 0.0, id="nothing"),
        pytest.param("", "", 1.0, id="both-empty"),
    ],
)
def test_texts_by_edit_similarity(true: str, written: str, score: float) -> None:
    assert write_score(true, written) == pytest.approx(score)


@pytest.mark.parametrize(
    ("left", "right", "distance"),
    [("kitten", "sitting", 3), ("", "abc", 3), ("abc", "abc", 0), ("ab", "ba", 2)],
    ids=["classic", "empty", "same", "swap"],
)
def test_edit_distance(left: str, right: str, distance: int) -> None:
    assert edit_distance(left, right) == edit_distance(right, left) == distance


@given(st.text(max_size=8), st.text(max_size=8), st.text(max_size=8))
def test_edit_distance_is_a_metric(one: str, two: str, three: str) -> None:
    assert edit_distance(one, three) <= edit_distance(one, two) + edit_distance(two, three)
    assert abs(len(one) - len(two)) <= edit_distance(one, two) <= max(len(one), len(two))


BOX = TrueAction(Action(ActionKind.CLICK, (0.5, 0.5)), ((0.4, 0.4, 0.9, 0.9),))
POINT = TrueAction(Action(ActionKind.CLICK, (0.5, 0.5)))
TEXT = TrueAction(Action(ActionKind.WRITE, text="hello"))
ENTER = TrueAction(Action(ActionKind.KEYS, keys=("enter",)))
COPY = TrueAction(Action(ActionKind.KEYS, keys=("ctrl", "c")))
DONE = TrueAction(Action(ActionKind.TERMINATE, status="success"))


def said(kind: ActionKind, **fields: Any) -> Action:
    return Action(kind, **fields)


@pytest.mark.parametrize(
    ("truth", "predicted", "value", "parts"),
    [
        pytest.param([BOX], [said(ActionKind.CLICK, point=(0.9, 0.4))], 1.0, {"coordinate": 1.0}, id="in-the-box"),
        pytest.param([POINT], [said(ActionKind.CLICK, point=(0.51, 0.51))], 1.0, {"coordinate": 1.0}, id="just-close"),
        pytest.param([BOX], [said(ActionKind.DOUBLE_CLICK, point=(0.5, 0.5))], 0.0, {"coordinate": 0.0}, id="kind"),
        pytest.param([COPY], [said(ActionKind.KEYS, keys=("c", "ctrl"))], 1.0, {"content": 1.0}, id="keys-are-a-set"),
        pytest.param([COPY], [said(ActionKind.KEYS, keys=("ctrl",))], 0.0, {"content": 0.0}, id="a-key-less"),
        pytest.param([DONE], [said(ActionKind.TERMINATE, status="success")], 1.0, {"function": 1.0}, id="done"),
        pytest.param([DONE], [said(ActionKind.TERMINATE, status="failure")], 0.0, {"function": 0.0}, id="gave-up"),
        pytest.param(
            [TrueAction(Action(ActionKind.SCROLL, direction="down"))],
            [said(ActionKind.SCROLL, direction="up")],
            1.0,
            {"coordinate": 1.0},
            id="scroll-by-its-type",
        ),
        pytest.param(
            [BOX, TEXT],
            [said(ActionKind.CLICK, point=(0.5, 0.5))],
            0.5,
            {"content": 0.0, "coordinate": 1.0},
            id="half-done",
        ),
        pytest.param(
            [TEXT, ENTER], [said(ActionKind.WRITE, text="hello\n")], 1.0, {"content": 1.0}, id="enter-as-line-break"
        ),
        pytest.param(
            [TEXT],
            [said(ActionKind.WRITE, text="hello"), said(ActionKind.KEYS, keys=("enter",))],
            1.0,
            {"content": 1.0},
            id="enter-on-top",
        ),
        pytest.param(
            [TrueAction(Action(ActionKind.MOVE, (0.1, 0.1))), TrueAction(Action(ActionKind.DRAG, end=(0.5, 0.5)))],
            [said(ActionKind.DRAG, point=(0.1, 0.1), end=(0.5, 0.5))],
            1.0,
            {"coordinate": 1.0},
            id="drag-with-its-start",
        ),
        pytest.param(
            [BOX, BOX], [said(ActionKind.CLICK, point=(0.5, 0.5))], 0.5, {"coordinate": 0.5}, id="one-click-of-two"
        ),
        pytest.param([BOX], [], 0.0, {"coordinate": 0.0}, id="nothing-said"),
        pytest.param(
            [BOX, TEXT],
            [said(ActionKind.WAIT), said(ActionKind.WRITE, text="hello")],
            0.0,
            {"content": 0.0, "coordinate": 0.0},
            id="first-kind-unknown",
        ),
    ],
)
def test_the_metric_by_hand(
    truth: list[TrueAction], predicted: list[Action], value: float, parts: dict[str, float]
) -> None:
    score = score_actions(truth, predicted)
    assert score.value == pytest.approx(value) and dict(score.parts) == pytest.approx(parts)
