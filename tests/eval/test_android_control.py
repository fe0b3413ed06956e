"""AndroidControl: step rows, episodes for history, and the metric by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from star_kv_sglang.tools.actions import Action, ActionKind
from star_kv_sglang.tools.eval.benchmarks.android_control import AndroidControlHigh, AndroidControlLow
from star_kv_sglang.tools.eval.errors import DataError
from star_kv_sglang.tools.eval.samples import Step
from tests.eval.conftest import MakeImage


def node(left: int, top: int, right: int, bottom: int, **words: str | None) -> dict[str, Any]:
    return {"bbox_pixels": {"x_min": left, "y_min": top, "x_max": right, "y_max": bottom}, **words}


TREE = [
    node(0, 0, 100, 200),
    [node(0, 0, 100, 20, text="Go Back"), [node(10, 100, 50, 140, text=None, content_description="Maps icon")]],
]
ROW: dict[str, Any] = {
    "episode_id": 7,
    "step_index": 2,
    "goal": "Find the museum",
    "step_instruction": "Tap the icon",
    "screenshot": "7/2.png",
    "previous_actions": ["Open the drawer", "Scroll down"],
    "accessibility_tree": TREE,
    "action": {"action_type": "click", "x": 20, "y": 110},
}
EPISODE: dict[str, Any] = {
    "episode_id": 7,
    "screenshot_paths": ["7/0.png", "7/1.png", "7/2.png"],
    "actions": [
        {"action_type": "open_app", "app_name": "Launcher"},
        {"action_type": "scroll", "direction": "down"},
        {"action_type": "click", "x": 20, "y": 110},
    ],
    "step_instructions": ["Open the drawer", "Scroll down", "Tap the icon"],
}


def write(folder: Path, make_image: MakeImage, rows: list[Any], episodes: object = None) -> Path:
    for number in range(3):
        make_image(folder / "images" / "7" / f"{number}.png", 100, 200)
    (folder / "steps.json").write_text(json.dumps(rows), encoding="utf-8")
    if episodes is not None:
        (folder / "android_control_test.json").write_text(json.dumps(episodes), encoding="utf-8")
    return folder


def step_for(folder: Path, make_image: MakeImage, **action: Any) -> Step:
    dataset = AndroidControlHigh().load(write(folder, make_image, [{**ROW, "action": action}]), 0)
    assert not dataset.problems
    return dataset.episodes[0].steps[-1]


def test_a_single_step_says_the_goal_and_what_was_done(tmp_path: Path, make_image: MakeImage) -> None:
    (episode,) = AndroidControlHigh().load(write(tmp_path, make_image, [ROW]), 0).episodes
    assert episode.id == "7/2"
    assert episode.task == "Find the museum\n\nSteps taken so far:\n1. Open the drawer\n2. Scroll down"
    (step,) = episode.steps
    assert step.instruction == "" and step.groups == {"action": "click"}
    assert step.truth == (Action(ActionKind.CLICK, (0.2, 0.55)),)


def test_the_low_level_says_the_step(tmp_path: Path, make_image: MakeImage) -> None:
    (episode,) = AndroidControlLow().load(write(tmp_path, make_image, [ROW]), 0).episodes
    assert episode.steps[0].instruction == "The next step: Tap the icon"


def test_rows_may_be_lines(tmp_path: Path, make_image: MakeImage) -> None:
    data = write(tmp_path, make_image, [])
    (data / "steps.json").unlink()
    text = f"{json.dumps(ROW)}\n\nnot json\n{json.dumps({**ROW, 'step_index': 1})}\n"
    (data / "steps.jsonl").write_text(text, encoding="utf-8")
    dataset = AndroidControlHigh().load(data, 0)
    assert [episode.id for episode in dataset.episodes] == ["7/2", "7/1"]
    assert [problem.row for problem in dataset.problems] == ["row 3"]


def test_history_frames_come_from_the_episode(tmp_path: Path, make_image: MakeImage) -> None:
    data = write(tmp_path, make_image, [ROW], {"7": EPISODE})
    (episode,) = AndroidControlLow().load(data, 2).episodes
    assert episode.task == "Find the museum"
    assert [step.scored for step in episode.steps] == [False, False, True]
    assert [step.screenshot.path.name for step in episode.steps if step.screenshot] == ["0.png", "1.png", "2.png"]
    assert episode.steps[0].truth == (Action(ActionKind.OPEN_APP, text="Launcher"),)
    assert episode.steps[1].instruction == "The next step: Scroll down"


@pytest.mark.parametrize(
    ("episodes", "reason"),
    [
        pytest.param({"8": {**EPISODE, "episode_id": 8}}, "has no episode 7", id="no-episode"),
        pytest.param({"7": {**EPISODE, "actions": EPISODE["actions"][:1]}}, "has no step 1", id="too-short"),
        pytest.param(
            {"7": {**EPISODE, "screenshot_paths": ["7/0.png", "7/9.png"]}}, "step 1: the image", id="no-image"
        ),
    ],
)
def test_a_damaged_episode_is_named(tmp_path: Path, make_image: MakeImage, episodes: object, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        AndroidControlHigh().load(write(tmp_path, make_image, [ROW], episodes), 1)


def test_history_needs_the_episodes_file(tmp_path: Path, make_image: MakeImage) -> None:
    with pytest.raises(DataError, match=r"android_control_test\.json does not exist, and --history-frames needs it"):
        AndroidControlHigh().load(write(tmp_path, make_image, [ROW]), None)


def test_large_screenshots_are_scaled_down(tmp_path: Path, make_image: MakeImage) -> None:
    data = write(tmp_path, make_image, [ROW])
    make_image(data / "images" / "7" / "2.png", 1440, 3120)
    shot = AndroidControlHigh().load(data, 0).episodes[0].steps[0].screenshot
    assert shot is not None
    assert (shot.size, shot.sent_size) == ((1440, 3120), (1200, 2600)), "1200 / 1440 = 2600 / 3120"


@pytest.mark.parametrize(
    ("point", "right"),
    [
        # the true point (20, 110) lies in the screen and in the icon's box x 10..50, y 100..140: the icon is smaller
        pytest.param((0.10, 0.50), 1.0, id="icon's-corner"),
        pytest.param((0.50, 0.70), 1.0, id="icon's-other-corner"),
        pytest.param((0.51, 0.55), 0.0, id="beside-the-icon"),
        pytest.param((0.05, 0.05), 0.0, id="in-another-node"),
    ],
)
def test_a_click_is_right_in_the_smallest_node(
    tmp_path: Path, make_image: MakeImage, point: tuple[float, float], right: float
) -> None:
    step = step_for(tmp_path, make_image, action_type="click", x=20, y=110)
    score = AndroidControlHigh().score(step, [Action(ActionKind.CLICK, point)], "")
    assert (score.value, dict(score.parts)) == (right, {"grounding": right})


CLICK = Action(ActionKind.CLICK, (0.2, 0.55))


@pytest.mark.parametrize(
    ("truth", "action", "value", "grounding"),
    [
        pytest.param(
            {"action_type": "long_press", "x": 20, "y": 110},
            Action(ActionKind.LONG_PRESS, (0.2, 0.6)),
            1,
            1,
            id="press",
        ),
        pytest.param({"action_type": "long_press", "x": 20, "y": 110}, CLICK, 0, None, id="click-is-no-press"),
        pytest.param(
            {"action_type": "open_app", "app_name": "Maps"},
            Action(ActionKind.OPEN_APP, text="maps "),
            1,
            None,
            id="app",
        ),
        pytest.param({"action_type": "open_app", "app_name": "Maps"}, CLICK, 1, 1, id="click-on-the-app-s-icon"),
        pytest.param({"action_type": "open_app", "app_name": "Mail"}, CLICK, 0, 0, id="click-on-another-icon"),
        pytest.param({"action_type": "navigate_back"}, Action(ActionKind.BACK), 1, None, id="back"),
        pytest.param({"action_type": "navigate_back"}, Action(ActionKind.CLICK, (0.5, 0.05)), 1, 1, id="click-on-back"),
        pytest.param({"action_type": "navigate_back"}, CLICK, 0, 0, id="click-elsewhere"),
        pytest.param({"action_type": "navigate_home"}, Action(ActionKind.HOME), 1, None, id="home"),
        pytest.param({"action_type": "wait"}, Action(ActionKind.WAIT), 1, None, id="wait"),
        pytest.param({"action_type": "wait"}, CLICK, 0, None, id="click-is-no-wait"),
        pytest.param(
            {"action_type": "input_text", "text": "Louvre"},
            Action(ActionKind.WRITE, text="Louvre\n"),
            1,
            None,
            id="text",
        ),
        pytest.param(
            {"action_type": "input_text", "text": "Louvre"}, Action(ActionKind.WRITE, text="louvre"), 0, None, id="case"
        ),
        pytest.param(
            {"action_type": "scroll", "direction": "down"},
            Action(ActionKind.SCROLL, direction="down"),
            1,
            None,
            id="scroll",
        ),
        pytest.param(
            {"action_type": "scroll", "direction": "down"},
            Action(ActionKind.SCROLL, direction="up"),
            0,
            None,
            id="direction",
        ),
        pytest.param(
            {"action_type": "status", "goal_status": "successful"},
            Action(ActionKind.TERMINATE, status="success"),
            1,
            None,
            id="done",
        ),
    ],
)
def test_the_metric_by_hand(
    tmp_path: Path, make_image: MakeImage, truth: dict[str, Any], action: Action, value: float, grounding: float | None
) -> None:
    score = AndroidControlHigh().score(step_for(tmp_path, make_image, **truth), [action], "")
    assert (score.value, score.parts.get("grounding")) == (value, grounding)


def test_only_the_first_action_counts_and_none_is_wrong(tmp_path: Path, make_image: MakeImage) -> None:
    step = step_for(tmp_path, make_image, action_type="wait")
    assert AndroidControlHigh().score(step, [CLICK, Action(ActionKind.WAIT)], "").value == 0
    assert AndroidControlHigh().score(step, [], "").value == 0


def test_a_true_point_outside_every_node_is_never_hit(tmp_path: Path, make_image: MakeImage) -> None:
    row = {**ROW, "accessibility_tree": [node(0, 0, 10, 10)]}
    (episode,) = AndroidControlHigh().load(write(tmp_path, make_image, [row]), 0).episodes
    assert AndroidControlHigh().score(episode.steps[0], [CLICK], "").value == 0


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        pytest.param({"action": {"action_type": "jump"}}, "there is no action_type 'jump'", id="action-type"),
        pytest.param({"action": {"action_type": "click", "x": 1}}, "field 'action': field 'y' is missing", id="no-y"),
        pytest.param({"action": {"action_type": "scroll", "direction": "in"}}, "must be up, down", id="direction"),
        pytest.param({"accessibility_tree": [{"text": "a"}]}, "a node without bbox_pixels", id="node"),
        pytest.param({"accessibility_tree": {}}, "must be a list", id="tree"),
        pytest.param({"episode_id": None}, "'episode_id' must be a string or a whole number", id="episode"),
        pytest.param({"step_index": "2"}, "'step_index' must be a whole number, not \"2\"", id="step"),
        pytest.param({"previous_actions": "none"}, "'previous_actions' must be a list", id="previous"),
    ],
)
def test_a_damaged_row_is_named_and_left_out(
    tmp_path: Path, make_image: MakeImage, changes: dict[str, Any], reason: str
) -> None:
    data = write(tmp_path, make_image, [{**ROW, **changes}, ROW])
    dataset = AndroidControlHigh().load(data, 0)
    assert len(dataset.episodes) == 1
    (problem,) = dataset.problems
    assert str(problem).startswith(f"{data / 'steps.json'}: row 1") and reason in str(problem)
