"""The command line, from files to tables."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from star_kv_sglang.errors import StarKVError
from star_kv_sglang.tools.cli import eval as command
from star_kv_sglang.tools.eval.benchmarks import BENCHMARKS, register_benchmark
from star_kv_sglang.tools.eval.families import FAMILIES, register_family
from tests.eval.cases import Colours, Words
from tests.eval.conftest import MakeImage
from tests.eval.fake_server import FakeServer
from tests.eval.test_screenspot import V2_ROW, v2


def star_kv_eval(*words: object) -> Result:
    result = CliRunner().invoke(command.eval_app, [str(word) for word in words], env={"COLUMNS": "200"})
    if result.exception is not None and not isinstance(result.exception, (SystemExit, StarKVError)):
        raise result.exception
    return result


@pytest.fixture
def colours() -> Iterator[None]:
    register_benchmark(Colours())
    register_family(Words())
    yield
    del BENCHMARKS["colours"], FAMILIES["words"]


@pytest.fixture
def data(tmp_path: Path, make_image: MakeImage) -> Path:
    (tmp_path / "data").mkdir()
    return v2(tmp_path / "data", make_image, [V2_ROW, {**V2_ROW, "bbox": []}, {**V2_ROW, "data_type": "text"}])


def run_words(data: Path, server: FakeServer, out: Path, *more: object) -> list[object]:
    return [
        "run", "screenspot-v2", "--data", data, "--model-family", "ui-tars-1.5",
        "--base-url", server.url, "--out", out, *more,
    ]  # fmt: skip


def test_a_run_from_files_to_tables(data: Path, server: FakeServer, tmp_path: Path) -> None:
    # 200 x 100 px becomes 420 x 224 in the model's eyes; (84, 56) is (0.2, 0.25), inside the box
    server.answer = lambda body: "Action: click(point='<point>84 56</point>')"
    result = star_kv_eval(*run_words(data, server, tmp_path / "out"))
    assert result.exit_code == 0, result.output
    assert "left out:" in result.output and "row 2: field 'bbox' must be 4 numbers" in result.output
    assert "100.0" in result.output and "1 rows left out" in result.output and "web icon" in result.output
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["score"]["mean"] == 1.0 and summary["score"]["num_samples"] == 2
    settings = json.loads((tmp_path / "out" / "run.json").read_text())["settings"]
    assert settings["server"] == {"kv_budget": 0.2, "kv_policy": "star"} and settings["protocol"] == "stateless"
    body = server.requests[0]
    assert (body["model"], body["max_tokens"], body["temperature"]) == ("tiny", 128, 0)


def test_failed_requests_end_with_status_1_and_are_asked_again(data: Path, server: FakeServer, tmp_path: Path) -> None:
    server.faults = [400]
    words = run_words(data, server, tmp_path / "out", "--concurrency", 1)
    first = star_kv_eval(*words)
    assert first.exit_code == 1 and "1 requests failed" in first.output
    server.requests.clear()
    assert star_kv_eval(*words).exit_code == 0
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        pytest.param(["run", "screenspot-v9"], "'screenspot-v9' does not exist", id="benchmark"),
        pytest.param(["run", "screenspot-v2", "--model-family", "gpt"], "'gpt' does not exist", id="family"),
        pytest.param(["run", "screenspot-v2", "--min-pixels", "5"], "preprocessor_config", id="pixels"),
        pytest.param(["run", "screenspot-v2", "--history-frames", "2"], "has no history", id="frames"),
        pytest.param(["run", "agentnetbench"], "holds no .json file of|is missing|no usable|folder of", id="data"),
        pytest.param(
            ["run", "screenspot-v2", "--base-url", "http://127.0.0.1:1", "--retries", "0"],
            "cannot be reached",
            id="server",
        ),
    ],
)
def test_bad_words_are_answered_with_a_reason(
    data: Path, server: FakeServer, tmp_path: Path, words: list[str], message: str
) -> None:
    defaults = {"--data": data, "--model-family": "ui-tars-1.5", "--out": tmp_path / "out", "--base-url": server.url}
    more = [word for name, value in defaults.items() if name not in words for word in (name, value)]
    result = star_kv_eval(*words, *more)
    assert isinstance(result.exception, StarKVError), result.output
    with pytest.raises(StarKVError, match=message):
        raise result.exception


def test_compare_and_show(data: Path, server: FakeServer, tmp_path: Path) -> None:
    server.answer = lambda body: "Action: click(point='<point>84 56</point>')"
    star_kv_eval(*run_words(data, server, tmp_path / "full"))
    server.server_info = {"kv_policy": "star", "kv_budget": 0.05}
    server.answer = lambda body: "Action: click(point='<point>0 0</point>')"
    star_kv_eval(*run_words(data, server, tmp_path / "star-5"))
    result = star_kv_eval("compare", tmp_path / "full", tmp_path / "star-5", "--json", tmp_path / "c.json")
    assert result.exit_code == 0, result.output
    assert "-100.0" in result.output and "0.500" in result.output, "two of two lost: p = 2 / 4"
    figures = json.loads((tmp_path / "c.json").read_text())["screenspot-v2"]
    assert figures["runs"][0]["test"]["num_lost"] == 2
    shown = star_kv_eval("show", tmp_path / "full", tmp_path / "star-5")
    assert shown.exit_code == 0 and "Headline figures" in shown.output


def test_registered_ones_run_like_the_others(colours: None, server: FakeServer, tmp_path: Path) -> None:
    server.answer = lambda body: "blue"
    listed = star_kv_eval("list")
    assert "colours" in listed.output and "words" in listed.output and "screenspot-pro" in listed.output
    result = star_kv_eval(
        "run", "colours", "--data", tmp_path, "--model-family", "words", "--base-url", server.url,
        "--out", tmp_path / "out", "--protocol", "persistent", "--label", "mine",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "colours: mine" in result.output and len(server.requests) == 6


def test_a_sweep_starts_a_server_for_each_configuration(
    colours: None, server: FakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[list[str]] = []

    @contextmanager
    def serving(arguments: list[str], log_file: Path, **options: Any) -> Iterator[str]:
        started.append([*arguments])
        server.server_info = {"kv_policy": "star" if "star" in arguments else "full"}
        yield server.url

    monkeypatch.setattr(command, "serving", serving)
    server.answer = lambda body: "blue"
    (tmp_path / "data" / "colours").mkdir(parents=True)
    words = [
        "sweep", "--model-path", "M", "--model-family", "words", "--data", tmp_path / "data", "--out", tmp_path / "out",
        "--benchmarks", "colours", "--budgets", "0.4,0.05", "--tp-size", "2",
    ]  # fmt: skip
    result = star_kv_eval(*words)
    assert result.exit_code == 0, result.output
    assert started == [
        ["--model-path", "M", "--kv-policy", "full", "--tp-size", "2"],
        ["--model-path", "M", "--kv-policy", "star", "--kv-budget", "0.4", "--tp-size", "2"],
        ["--model-path", "M", "--kv-policy", "star", "--kv-budget", "0.05", "--tp-size", "2"],
    ]
    assert "star-40" in result.output and "star-5" in result.output
    assert (tmp_path / "out" / "comparison.json").exists()
    started.clear()
    assert star_kv_eval(*words).exit_code == 0 and not started, "nothing is left to ask"
    other = star_kv_eval(*words, "--protocol", "persistent")
    assert isinstance(other.exception, StarKVError) and not started
    assert "protocol: 'stateless' there, 'persistent' now" in str(other.exception)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        pytest.param(["--budgets", "0.4,x"], "must be numbers with commas", id="no-number"),
        pytest.param(["--budgets", "40"], r"--budgets 40 must be in \(0, 1\]", id="percent"),
        pytest.param(["--benchmarks", "screenspot-pro"], "screenspot-pro does not exist; put", id="no-data"),
    ],
)
def test_a_sweep_refuses_before_it_starts_anything(tmp_path: Path, words: list[str], message: str) -> None:
    fixed = ["--model-path", "M", "--model-family", "ui-tars-1.5", "--data", tmp_path, "--out", tmp_path / "out"]
    result = star_kv_eval("sweep", *fixed, *words)
    assert isinstance(result.exception, StarKVError), result.output
    with pytest.raises(StarKVError, match=message):
        raise result.exception
