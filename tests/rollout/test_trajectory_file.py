"""Files that cannot be used say which field of which turn is wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from star_kv_sglang.tools.rollout.trajectory import TrajectoryFileError, load_trajectories, save_trajectories
from tests.rollout.cases import two_branches


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    save_trajectories(two_branches(), tmp_path / "t.json")
    return tmp_path / "t.json"


def drop(name: str) -> Callable[[dict[str, Any]], None]:
    return lambda question: question.pop(name)


def put(name: str, value: object) -> Callable[[dict[str, Any]], None]:
    return lambda question: question.update({name: value})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (drop("answer"), "field 'answer' is missing"),
        (put("back", "one"), "field 'back' must be int"),
        (put("question", " "), "field 'question' is empty"),
        (put("box", [1, 2, 3]), "must be four integers"),
        (put("box", [1, 2, 3, 4.5]), "must be four integers"),
        (put("moved", 0), "field 'moved' must be bool"),
    ],
    ids=["missing", "wrong-type", "empty", "short-box", "fractional-box", "number-for-bool"],
)
def test_a_bad_question_is_named(saved: Path, damage: Callable[[dict[str, Any]], None], message: str) -> None:
    rows = json.loads(saved.read_text())
    damage(rows[1]["turns"][2]["questions"][0])
    saved.write_text(json.dumps(rows))
    with pytest.raises(TrajectoryFileError, match=f"trajectory 1, turn 2, question 0: .*{message}"):
        load_trajectories(saved)


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "is no JSON"), ("[]", "at least one trajectory"), ("{}", "JSON list"), ("[3]", "must be an object")],
)
def test_a_bad_file_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "t.json").write_text(text)
    with pytest.raises(TrajectoryFileError, match=message):
        load_trajectories(tmp_path / "t.json")


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrajectoryFileError, match="No such file"):
        load_trajectories(tmp_path / "nothing.json")


def test_a_missing_screenshot_is_named(saved: Path) -> None:
    (saved.parent / "t_001_1.png").unlink()
    with pytest.raises(TrajectoryFileError, match=r"trajectory 1, turn 1: screenshot t_001_1.png cannot be read"):
        load_trajectories(saved)


def test_a_screenshot_of_another_format_is_named(saved: Path) -> None:
    (saved.parent / "t_000_2.png").write_bytes(b"GIF89a")
    with pytest.raises(TrajectoryFileError, match=r"000_2.png is no PNG"):
        load_trajectories(saved)


def test_files_in_one_folder_keep_their_screenshots_apart(tmp_path: Path) -> None:
    first, second = two_branches()
    save_trajectories([first], tmp_path / "first.json")
    save_trajectories([second], tmp_path / "second.json")
    assert load_trajectories(tmp_path / "first.json") == [first]
    assert load_trajectories(tmp_path / "second.json") == [second]
