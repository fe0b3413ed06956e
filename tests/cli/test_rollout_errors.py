"""``star-kv rollout --env`` ends in one line and exit status 2 where all of it cannot go on."""

from __future__ import annotations

import json
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from star_kv_sglang.cli.main import main
from star_kv_sglang.tools.cli import rollout_branches
from star_kv_sglang.tools.rollout.folder import RolloutFolder
from tests.rollout.fake_server import Asking, Chat, FakeServer, completion, fake_server, reply, send
from tests.rollout.small_world import Clicker

WORLD = ("--env", "tests.rollout.small_world:numbers", "--agent", "tests.rollout.small_world:Clicker")


class OfNothing(Clicker):
    """An agent that plays tasks of other suites alone."""

    name = "of nothing"
    tasks = ("elsewhere",)


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rollout_branches, "_RETRIES", 0)


def roll(url: str, out: Path, *words: str) -> int:
    plain = ("--base-url", url, "--out", str(out), "--branches", "2", "--patience", "0.2")
    return main(["rollout", *WORLD, *plain, *words])


def refused(capsys: pytest.CaptureFixture[str]) -> str:
    """What was said: one line."""
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1, said
    return said


def test_an_unknown_task_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with fake_server(reply("right")) as server:
        assert roll(server.url, tmp_path, "--tasks", "nosuch") == 2
    assert "numbers has no task nosuch; its tasks are up, down" in refused(capsys)


@pytest.mark.parametrize("search", [(), ("--fork-every", "2")], ids=["branches", "tree"])
def test_a_folder_of_another_rollout_is_named(
    search: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with fake_server(reply("right")) as server:
        assert roll(server.url, tmp_path, *search) == 0
        assert roll(server.url, tmp_path, "--seed", "1", *search) == 2
    assert "holds another rollout (seed: 0 there, 1 now)" in refused(capsys)


def test_a_folder_in_use_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with fake_server(reply("right")) as server, RolloutFolder(tmp_path, {}):
        assert roll(server.url, tmp_path) == 2
    assert "is in use: another rollout (process " in refused(capsys)


def test_a_damaged_trace_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with fake_server(reply("right")) as server:
        assert roll(server.url, tmp_path) == 0
        path = tmp_path / "traces" / "up" / "1.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines()
        path.write_text("\n".join([*lines[:2], "[1]", *lines[3:]]) + "\n", encoding="utf-8")
        assert roll(server.url, tmp_path) == 2
    assert "line 3 is no object" in refused(capsys)


def goes(server: FakeServer, handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
    handler.close_connection = True


def refuses(server: FakeServer, handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
    send(handler, {"message": "who are you?"}, 401)


@pytest.mark.parametrize(
    ("chat", "message"), [(goes, "broke off the connection"), (refuses, "check --api-key")], ids=["away", "401"]
)
def test_a_server_that_is_of_no_use_is_named(
    chat: Chat, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with fake_server(chat) as server:
        assert roll(server.url, tmp_path) == 2
    assert message in refused(capsys)


def test_an_agent_that_plays_none_of_the_tasks_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--agent", f"{__name__}:OfNothing")
    with fake_server(reply("right")) as server:
        assert roll(server.url, tmp_path, *words) == 2
    assert refused(capsys) == "error: the agent 'of nothing' plays none of the tasks of numbers; name --agent\n"


def test_a_server_that_goes_after_the_last_turn_costs_no_tables(tmp_path: Path) -> None:
    """Its answer to the last request is the last that it says at all."""

    def last(server: FakeServer, handler: Asking, body: dict[str, Any]) -> None:
        if handler.number == 5:
            server.pages_are_gone = True
        send(handler, completion("right"))

    with fake_server(last, info={"kv_policy": "star", "kv_budget": 0.2}) as server:
        assert roll(server.url, tmp_path, "--branches", "1", "--tasks", "up") == 0
    summary = json.loads((tmp_path / "summary.json").read_text(encoding="utf-8"))
    assert summary["tasks"][0]["successes"] == 1
    assert summary["server_kv"] == {"kv_policy": "star", "kv_budget": 0.2}
