"""`star-kv bench group`: when an answer has begun, what is an error, and the command on a real server."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from star_kv_sglang import cpu_mode
from star_kv_sglang.cli.main import main
from star_kv_sglang.tools.bench.group import Group, first_tokens_s
from star_kv_sglang.tools.bench.serve.errors import ServeBenchError


def _client(events: list[dict[str, Any]], status: int = 200) -> tuple[httpx.Client, list[dict[str, Any]]]:
    """A client of a server that streams these events, and the bodies that it was sent."""
    bodies: list[dict[str, Any]] = []

    def answer(request: httpx.Request) -> httpx.Response:
        bodies.append(json.loads(request.content))
        text = "".join(f"data: {json.dumps(event)}\n\n" for event in events) + "data: [DONE]\n\n"
        return httpx.Response(status, text=text)

    return httpx.Client(base_url="http://server", transport=httpx.MockTransport(answer)), bodies


def _event(index: int, tokens: int) -> dict[str, Any]:
    return {"index": index, "text": "", "meta_info": {"completion_tokens": tokens}}


def test_it_waits_for_every_answer_of_the_group() -> None:
    http, bodies = _client([_event(1, 0), _event(1, 1), _event(0, 1), _event(1, 2)])
    assert first_tokens_s(http, "text", ["data:a", "data:b"], 2, 8) > 0
    assert bodies[0]["sampling_params"]["n"] == 2
    assert bodies[0]["image_data"] == ["data:a", "data:b"]
    http, bodies = _client([_event(0, 1)])
    first_tokens_s(http, "text", [], 1, 8)
    assert "n" not in bodies[0]["sampling_params"]


@pytest.mark.parametrize(
    ("events", "status", "message"),
    [
        ([_event(0, 1), _event(1, 0)], 200, "1 of 2 answers began"),
        ([{"error": "no room"}], 200, "no room"),
        ([], 400, "answered 400"),
    ],
    ids=["never began", "broke off", "refused"],
)
def test_an_answer_that_does_not_come_is_an_error(events: list[dict[str, Any]], status: int, message: str) -> None:
    http, _ = _client(events, status)
    with pytest.raises(ServeBenchError, match=message):
        first_tokens_s(http, "text", [], 2, 8)


def test_no_screenshot_is_shown_twice() -> None:
    assert Group(answers=8, screens=5, repeats=6).num_screenshots == 2 * 7 * 5


@pytest.mark.nightly
@pytest.mark.skipif(cpu_mode.is_gpu_present(), reason="the sizes are for a CPU; on a GPU the command itself is run")
def test_the_command_on_a_real_server(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "bench",
        "group",
        "--shape",
        "tiny",
        "--screen",
        "112x84",
        "--screens",
        "2",
        "--answers",
        "3",
        "--repeats",
        "2",
    ]
    more = ["--engine-args", "--max-total-tokens 32768", "--csv", str(tmp_path / "g.csv"), "--work", str(tmp_path)]
    assert main([*words, *more]) == 0
    assert "a group of 3 takes" in capsys.readouterr().out
    with (tmp_path / "g.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["metric"], row["batch"]) for row in rows] == [
        ("first_tokens_s_p50", "1"),
        ("first_tokens_s_p50", "3"),
        ("group_against_one", "3"),
    ]
