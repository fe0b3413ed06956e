"""`star-kv bench fleet`: which screenshots are sent, and whose processor seconds are whose."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner

from star_kv_sglang.tools.bench.fleet import watch
from star_kv_sglang.tools.bench.fleet.history import History
from star_kv_sglang.tools.bench.fleet.load import Branch, Load
from star_kv_sglang.tools.bench.fleet.run import Server, prefilled
from star_kv_sglang.tools.bench.fleet.screenshots import desktop
from star_kv_sglang.tools.bench.serve.client import Stream
from star_kv_sglang.tools.bench.serve.errors import ServeBenchError
from star_kv_sglang.tools.cli.bench import bench_app


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("append", [0, 0, 0, 0, 0, 0, 0]),
        ("last:3", [0, 0, 0, 1, 2, 3, 4]),
        ("interval:2", [0, 0, 0, 0, 2, 2, 4]),
    ],
)
def test_which_screenshots_of_its_history_an_agent_sends(text: str, first: list[int]) -> None:
    history = History.parse(text)
    assert [history.first_shown(turn) for turn in range(7)] == first
    assert str(history) == text


@pytest.mark.parametrize("text", ["last", "last:0", "last:x", "append:3", "newest:2", ""])
def test_another_history_is_refused(text: str) -> None:
    with pytest.raises(ServeBenchError, match="give append, last:N or interval:N"):
        History.parse(text)


def test_a_shorter_fleet_sees_the_screenshots_of_the_whole_one() -> None:
    load = Load(branches=24, turns=8, history=History.parse("append"), group_size=4, shared=2)
    short = replace(load, played=3)
    seen = {short.seed(branch, turn) for branch in range(24) for turn in range(short.num_played)}
    assert seen <= set(load.seeds())
    assert len(load.seeds()) == 24 * 6 + 6 * 2, "a group sees the same in its first turns, nobody else does"


def test_a_dropped_screenshot_takes_its_message_along() -> None:
    load = Load(branches=1, turns=4, history=History.parse("last:2"))
    talk = Branch(0, load, {seed: f"url{seed}" for seed in load.seeds()})
    talk._answers = ["w1", "w2", "w3"]
    prompt = talk.prompt(3)
    assert prompt.screens == ["url2", "url3"]
    assert prompt.text.count("<|image_pad|>") == prompt.text.count("user") == 2
    assert all(f"assistant {word} <|im_end|>" in prompt.text for word in talk._answers)


def test_screenshots_differ_and_are_as_large_as_a_desktops() -> None:
    first, again, other = desktop(1, (1920, 1080)), desktop(1, (1920, 1080)), desktop(2, (1920, 1080))
    assert first == again != other
    assert 200_000 < len(first) < 2_000_000
    with Image.open(io.BytesIO(first)) as picture:
        assert picture.size == (1920, 1080)


class Process:
    """A process of a server."""

    def __init__(self, *words: str) -> None:
        self.words = words

    def cmdline(self) -> list[str]:
        return list(self.words)

    def cpu_times(self) -> Any:
        return type("Times", (), {"user": 1.0, "system": 0.5})


def test_a_flag_that_names_a_schedule_does_not_make_a_scheduler(monkeypatch: pytest.MonkeyPatch) -> None:
    processes = [
        Process("python", "serve", "--schedule-policy", "lpm"),
        Process("sglang::scheduler"),
        Process("sglang::detokenizer"),
        Process("python", "-c", "from multiprocessing.spawn import spawn_main"),
    ]
    monkeypatch.setattr(watch, "_processes", lambda port: processes)
    assert watch._cpu_seconds(1) == {"api": 3.0, "scheduler": 1.5, "detokenizer": 1.5}


@pytest.mark.parametrize(
    ("text", "label", "flags"),
    [
        ("stock", "stock", ""),
        ("star 0.2: --kv-image-cache-mb 0", "star 0.2", "--kv-image-cache-mb 0"),
        ("window @last:5: --kv-recognise-windows all", "window @last:5", "--kv-recognise-windows all"),
        ("window @append: --kv-image-window 5", "window @append", "--kv-image-window 5"),
        ("stock@last:5", "stock @last:5", ""),
    ],
)
def test_a_server_may_have_a_history_and_flags_of_its_own(text: str, label: str, flags: str) -> None:
    server = Server.parse(text)
    assert (server.label, server.flags) == (label, flags)


@pytest.mark.parametrize("text", ["", "@last:5", "window @last", "star 0.2 @newest:2", "lru"])
def test_another_server_is_refused(text: str) -> None:
    with pytest.raises(ServeBenchError):
        Server.parse(text)


def test_tokens_of_a_branchs_first_turns_are_those_that_were_not_cached() -> None:
    turns = [
        Stream(meta={"prompt_tokens": 100 * number, "cached_tokens": 60 * number}, number=number) for number in (1, 2)
    ]
    assert prefilled(turns) == 120.0
    assert prefilled([turn for turn in turns if turn.number < 2]) == 40.0


def test_more_first_turns_than_turns_are_refused() -> None:
    answer = CliRunner().invoke(bench_app, ["fleet", "--turns", "8", "--first-turns", "9"])
    assert answer.exit_code == 2
    assert "a branch has 8 turns" in answer.output


def test_two_servers_of_one_name_are_refused() -> None:
    answer = CliRunner().invoke(bench_app, ["fleet", "--servers", "star 0.2; star 0.2: --kv-image-cache-mb 0"])
    assert answer.exit_code == 2
    assert "have one name" in answer.output
