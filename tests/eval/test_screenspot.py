"""ScreenSpot-v2 and ScreenSpot-Pro in their files' exact format, whole and damaged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from star_kv_sglang.tools.actions import Action, ActionKind
from star_kv_sglang.tools.eval.benchmarks.screenspot import ScreenSpotPro, ScreenSpotV2, contains
from star_kv_sglang.tools.eval.errors import DataError
from tests.eval.conftest import MakeImage

V2_ROW: dict[str, Any] = {
    "img_filename": "web_1.png",
    "bbox": [20, 10, 40, 30],
    "instruction": "open the cart",
    "data_type": "icon",
    "data_source": "shop",
}
PRO_ROW: dict[str, Any] = {
    "id": "blender_windows_0",
    "img_filename": "blender/a.png",
    "bbox": [20, 10, 60, 40],
    "img_size": [200, 100],
    "instruction": "add a cube",
    "instruction_cn": "添加立方体",
    "application": "blender",
    "platform": "windows",
    "group": "Creative",
    "ui_type": "text",
}


def v2(folder: Path, make_image: MakeImage, web: object, desktop: object = (), mobile: object = ()) -> Path:
    make_image(folder / "screenspotv2_image" / "web_1.png")
    for platform, rows in (("web", web), ("desktop", desktop), ("mobile", mobile)):
        (folder / f"screenspot_{platform}_v2.json").write_text(json.dumps(rows), encoding="utf-8")
    return folder


def pro(folder: Path, make_image: MakeImage, rows: object) -> Path:
    make_image(folder / "images" / "blender" / "a.png")
    (folder / "annotations").mkdir()
    (folder / "annotations" / "blender_windows.json").write_text(json.dumps(rows), encoding="utf-8")
    return folder


def test_v2_boxes_are_corner_and_size(tmp_path: Path, make_image: MakeImage) -> None:
    data = v2(tmp_path, make_image, [V2_ROW], desktop=[V2_ROW | {"data_type": "text"}])
    dataset = ScreenSpotV2().load(data, 0)
    assert not dataset.problems
    episodes = {episode.id: episode for episode in dataset.episodes}
    assert sorted(episodes) == ["desktop/1", "web/1"]
    (step,) = episodes["web/1"].steps
    assert episodes["web/1"].task == "open the cart"
    assert step.reference == (0.1, 0.1, 0.3, 0.4), "x 20..60 of 200, y 10..40 of 100"
    assert step.groups == {
        "platform": "web",
        "target": "icon",
        "platform and target": "web icon",
        "source": "shop",
    }
    assert step.screenshot is not None and step.screenshot.size == (200, 100)


def test_pro_boxes_are_two_corners(tmp_path: Path, make_image: MakeImage) -> None:
    (episode,) = ScreenSpotPro().load(pro(tmp_path, make_image, [PRO_ROW]), 0).episodes
    assert episode.id == "blender_windows_0"
    assert episode.steps[0].reference == (0.1, 0.1, 0.3, 0.4)
    assert episode.steps[0].groups["group and target"] == "Creative text"


@pytest.mark.parametrize(
    ("actions", "score"),
    [
        pytest.param([Action(ActionKind.CLICK, (0.2, 0.2))], 1.0, id="inside"),
        pytest.param([Action(ActionKind.CLICK, (0.1, 0.4))], 1.0, id="on-the-corner"),
        pytest.param([Action(ActionKind.CLICK, (0.0999, 0.2))], 0.0, id="just-outside"),
        pytest.param([Action(ActionKind.MOVE, (0.2, 0.2))], 1.0, id="any-pointing"),
        pytest.param([Action(ActionKind.WAIT), Action(ActionKind.CLICK, (0.2, 0.2))], 1.0, id="first-point"),
        pytest.param(
            [Action(ActionKind.CLICK, (0.9, 0.9)), Action(ActionKind.CLICK, (0.2, 0.2))], 0.0, id="not-the-second"
        ),
        pytest.param([Action(ActionKind.WAIT)], 0.0, id="no-point"),
        pytest.param([], 0.0, id="nothing"),
    ],
)
def test_click_in_the_box(tmp_path: Path, make_image: MakeImage, actions: list[Action], score: float) -> None:
    benchmark = ScreenSpotV2()
    (episode,) = benchmark.load(v2(tmp_path, make_image, [V2_ROW]), 0).episodes
    assert benchmark.score(episode.steps[0], actions, "").value == score


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        pytest.param({**V2_ROW, "bbox": [20, 10, 40]}, "field 'bbox' must be 4 numbers", id="short-box"),
        pytest.param({**V2_ROW, "bbox": [20, 10, 0, 30]}, "field 'bbox' is empty", id="empty-box"),
        pytest.param({**V2_ROW, "bbox": "20 10 40 30"}, "field 'bbox' must be a list", id="box-in-a-string"),
        pytest.param({**V2_ROW, "bbox": [20, 10, True, 30]}, "must be 4 numbers", id="truth-value"),
        pytest.param({**V2_ROW, "data_type": "image"}, "must be text or icon, not 'image'", id="type"),
        pytest.param({**V2_ROW, "img_filename": "gone.png"}, "gone.png does not exist", id="image"),
        pytest.param({**V2_ROW, "instruction": None}, "field 'instruction' must be a string", id="instruction"),
        pytest.param({"bbox": [1, 2, 3, 4]}, "field 'data_type' is missing; there are bbox", id="fields"),
        pytest.param("row", "must be an object", id="no-object"),
    ],
)
def test_a_damaged_row_is_named_and_left_out(tmp_path: Path, make_image: MakeImage, row: object, reason: str) -> None:
    dataset = ScreenSpotV2().load(v2(tmp_path, make_image, [V2_ROW, row, V2_ROW]), 0)
    assert [episode.id for episode in dataset.episodes] == ["web/1", "web/3"], "the others keep their names"
    (problem,) = dataset.problems
    assert problem.path.name == "screenspot_web_v2.json" and problem.row == "row 2"
    assert reason in problem.reason


def test_an_image_that_is_none_is_named(tmp_path: Path, make_image: MakeImage) -> None:
    data = v2(tmp_path, make_image, [V2_ROW, V2_ROW | {"img_filename": "broken.png"}])
    (data / "screenspotv2_image" / "broken.png").write_bytes(b"no image")
    (problem,) = ScreenSpotV2().load(data, 0).problems
    assert "broken.png cannot be read" in str(problem)


def test_an_identifier_that_occurs_twice_counts_once(tmp_path: Path, make_image: MakeImage) -> None:
    dataset = ScreenSpotPro().load(pro(tmp_path, make_image, [PRO_ROW, PRO_ROW]), 0)
    assert len(dataset.episodes) == 1
    assert str(dataset.problems[0]).endswith("blender_windows.json: row 2: 'blender_windows_0' occurs twice")


def test_a_file_that_is_missing_or_no_list(tmp_path: Path, make_image: MakeImage) -> None:
    with pytest.raises(DataError, match=r"screenspot_desktop_v2\.json does not exist; point --data"):
        ScreenSpotV2().load(tmp_path, 0)
    with pytest.raises(DataError, match="must hold a list of rows"):
        ScreenSpotV2().load(v2(tmp_path, make_image, {"rows": []}), 0)
    (tmp_path / "screenspot_web_v2.json").write_text("[{", encoding="utf-8")
    with pytest.raises(DataError, match=r"screenspot_web_v2\.json is no JSON"):
        ScreenSpotV2().load(tmp_path, 0)


def test_nothing_usable_is_an_error_that_names_the_first_reason(tmp_path: Path, make_image: MakeImage) -> None:
    with pytest.raises(DataError, match=r"no usable sample of screenspot-v2; the first of 1 problems: .*row 1"):
        ScreenSpotV2().load(v2(tmp_path, make_image, [{}]), 0)


def test_pro_without_annotations(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="annotations holds no"):
        ScreenSpotPro().load(tmp_path, 0)


def test_single_screens_have_no_history(tmp_path: Path, make_image: MakeImage) -> None:
    with pytest.raises(DataError, match="has no history"):
        ScreenSpotV2().load(v2(tmp_path, make_image, [V2_ROW]), 3)


def test_edges_belong_to_a_box() -> None:
    assert contains((0.1, 0.1, 0.3, 0.4), (0.3, 0.1)) and not contains((0.1, 0.1, 0.3, 0.4), (0.31, 0.1))
