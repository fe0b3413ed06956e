"""`star-kv bench sizing`: its arithmetic against what is known, and wrong input."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from star_kv_sglang.tools.bench.sizing import GIB, MIB, MODELS, Fleet, SizedModel, SizingError, size
from tests.architecture.imports import ROOT
from tests.star_kv import star_kv

SEVEN_B = next(model for model in MODELS if "Qwen2.5-VL-7B" in model.name)


def test_a_screenshot_of_a_desktop_in_the_7b_model() -> None:
    """The README's figures: 2,702 tokens with the text of a turn, 148 MiB."""
    assert SEVEN_B.screenshot_tokens((1920, 1080)) == 39 * 69
    assert round((39 * 69 + 11) * SEVEN_B.token_bytes / MIB) == 148


def test_what_one_model_of_thirty_two_pixels_sees() -> None:
    model = replace(SEVEN_B, token_pixels=32)
    assert model.screenshot_tokens((1920, 1080)) == 34 * 60


def test_the_pool_and_what_it_holds() -> None:
    model = SizedModel("m", 1, 1, 1, 0.0, 28)
    assert model.token_bytes == 4
    fleet = Fleet(4 * 1_000_000, 0.5, num_screenshots=4, num_shared=1, budget=0.25)
    one = size(model, (560, 560), fleet)
    assert (one.screenshot_tokens, one.pool_tokens) == (400, 500_000)
    assert one.branches_full == (500_000 - 411) // (3 * 411)
    assert one.branches_pruned == (500_000 - 411) // (3 * 11 + 300)


def test_weights_that_do_not_fit_leave_no_pool() -> None:
    one = size(SEVEN_B, (1920, 1080), Fleet(8 * GIB, 0.9, 10, 1, 0.2))
    assert (one.pool_tokens, one.branches_full, one.branches_pruned) == (0, 0, 0)


def test_a_models_own_configuration() -> None:
    config = ROOT / "examples" / "tinygui" / "model"
    raw = json.loads((config / "config.json").read_text(encoding="utf-8"))
    text = raw.get("text_config", raw)
    model = SizedModel.of_config(config)
    assert (model.num_layers, model.num_kv_heads) == (text["num_hidden_layers"], text["num_key_value_heads"])
    answer = star_kv(["bench", "sizing", "--config", str(config), "--params", "0.01", "--markdown"])
    assert answer.exit_code == 0
    assert "1920 x 1080" in answer.output


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "no configuration"),
        ("{", "no configuration"),
        ("{}", "no vision_config"),
        ("[]", "no JSON object"),
        ('{"vision_config": {}}', "is missing"),
    ],
)
def test_configurations_that_say_nothing(tmp_path: Path, content: str | None, said: str) -> None:
    file = tmp_path / "config.json"
    if content is not None:
        file.write_text(content, encoding="utf-8")
    with pytest.raises(SizingError, match=said):
        SizedModel.of_config(file)
    answer = star_kv(["bench", "sizing", "--config", str(file), "--params", "7"])
    assert answer.exit_code == 2
    assert "Traceback" not in answer.output


def test_weights_are_not_forgotten() -> None:
    answer = star_kv(["bench", "sizing", "--config", str(ROOT / "examples" / "tinygui" / "model")])
    assert answer.exit_code == 2
    assert "--params" in answer.output


def test_a_branch_has_screenshots_of_its_own() -> None:
    answer = star_kv(["bench", "sizing", "--screenshots", "2", "--shared", "2"])
    assert answer.exit_code == 2
