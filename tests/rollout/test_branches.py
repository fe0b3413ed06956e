"""Branches of any environment and agent: what the server is asked, and what the traces say."""

from __future__ import annotations

import json
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from star_kv_sglang.tools.chat import RequestError
from star_kv_sglang.tools.image_references import image_urls, with_image_urls
from star_kv_sglang.tools.rollout import End, RolloutError, RolloutSettings, outcomes, read_trace, time_split
from star_kv_sglang.tools.rollout.trace import Branch
from star_kv_sglang.tools.tune.threads import load_threads
from tests.rollout.fake_server import FakeServer, completion, fake_server, reply, send
from tests.rollout.small_world import Numbers, play

POLICY = {"kv_policy": "star", "enable_cache_report": True}


def test_each_branch_plays_until_its_episode_is_over(tmp_path: Path) -> None:
    with fake_server(reply("right")) as server:
        results = play(server.url, tmp_path, tasks=("up", "down"), branches=3)
    assert [one.branch.label for one in results] == ["up 0", "up 1", "up 2", "down 0", "down 1", "down 2"]
    assert {(one.end.end, one.end.turns, one.end.reward, one.success) for one in results} == {(End.DONE, 5, 1.0, True)}


def test_a_conversation_only_grows_and_begins_with_the_task(tmp_path: Path) -> None:
    with fake_server(reply("right")) as server:
        play(server.url, tmp_path, branches=1, max_turns=3)
    asked = [request["messages"] for request in server.requests]
    assert image_urls(asked[1])[0].startswith("sha256:"), "a screenshot that was sent is named by its digest"
    first, second, third = (with_image_urls(one, [""] * len(image_urls(one))) for one in asked)
    assert second[:2] == first and third[:3] == second[:3]
    assert first[0] == {"role": "system", "content": "The screen is 32 x 32."}
    assert [part["type"] for part in first[1]["content"]] == ["text", "image_url"]
    assert first[1]["content"][0]["text"] == "reach 5"
    assert second[2] == {"role": "assistant", "content": "right"}
    assert len(image_urls(third)) == 3


def test_what_was_said_is_kept_as_a_conversation_that_can_be_replayed(tmp_path: Path) -> None:
    with fake_server(reply("right")) as server:
        play(server.url, tmp_path, branches=2, max_turns=3)
    threads = load_threads(tmp_path)
    assert [thread.name for thread in threads] == ["conversations/up/0", "conversations/up/1"]
    turns, (_, rows, _) = threads[0].turns, read_trace(tmp_path / "traces" / "up" / "0.jsonl")
    assert [turn.pictures[-1].sha256 for turn in turns] == [row.screen for row in rows]
    assert [one.parts for one in turns[-1].said if one.role == "assistant"] == [("right",), ("right",)]
    assert turns[0].question == "reach 5"


def test_the_first_branch_of_a_task_asks_alone_and_shares(tmp_path: Path) -> None:
    alone: list[int] = []

    def chat(server: FakeServer, handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
        if len(image_urls(body["messages"])) == 1:
            alone.append(len(server.requests))
        send(handler, completion("right"))

    with fake_server(chat, info=POLICY) as server:
        play(server.url, tmp_path, branches=4, max_turns=2)
    assert alone[0] == 1, "the others wait for the first answer"
    asked = [(len(image_urls(one["messages"])), one.get("custom_params")) for one in server.requests]
    assert sorted(asked, key=str) == [(1, {"kv_share": True})] * 4 + [(2, None)] * 4


def test_a_budget_is_asked_for_with_every_request(tmp_path: Path) -> None:
    with fake_server(reply("right"), info=POLICY) as server:
        play(server.url, tmp_path, branches=2, max_turns=2, kv_budget=0.3)
    asked = [one["custom_params"] for one in server.requests]
    assert asked.count({"kv_share": True, "kv_budget": 0.3}) == 2 and asked.count({"kv_budget": 0.3}) == 2


def test_other_servers_are_not_told_of_policies(tmp_path: Path) -> None:
    with fake_server(reply("right")) as server:
        play(server.url, tmp_path, max_turns=2)
        assert all("custom_params" not in one for one in server.requests)
        with pytest.raises(RequestError, match=r"budget of 0\.3 needs a server with a KV policy"):
            play(server.url, tmp_path / "other", kv_budget=0.3)


def test_sampling_differs_between_branches_and_not_between_runs(tmp_path: Path) -> None:
    seeds = []
    for run in ("first", "second"):
        with fake_server(reply("right")) as server:
            play(server.url, tmp_path / run, max_turns=2, temperature=0.8)
        assert {one["temperature"] for one in server.requests} == {0.8}
        seeds.append(sorted(one["seed"] for one in server.requests))
    assert seeds[0] == seeds[1] and len(set(seeds[0])) == 4


def test_a_trace_holds_turns_screens_and_where_the_time_went(tmp_path: Path) -> None:
    with fake_server(reply("left"), info=POLICY) as server:
        results = play(server.url, tmp_path, branches=1)
    branch, rows, end = read_trace(tmp_path / "traces" / "up" / "0.jsonl")
    assert branch == Branch("up", "0", 0)
    assert (rows, end) == (list(results[0].rows), results[0].end)
    assert [row.reward for row in rows] == [0.0, 0.0, -1.0] and rows[-1].done
    assert all((tmp_path / "screens" / f"{row.screen}.png").read_bytes().startswith(b"\x89PNG") for row in rows)
    assert {"environment_s", "server_s", "waiting_s", "own_s", "cached_tokens", "request_id"} <= set(rows[0].measured)
    split = time_split(results)
    assert split.turns == 3 and split.server_s > 0
    assert [(one.successes, one.turns, one.cached) for one in outcomes(results)] == [(0, 3, 0.4)]


def test_an_agent_can_say_that_it_has_finished(tmp_path: Path) -> None:
    with fake_server(reply("done")) as server:
        results = play(server.url, tmp_path, branches=1)
    assert (results[0].end.end, results[0].end.turns, results[0].end.reward) == (End.FINISHED, 1, 0.0)


def test_turns_are_limited(tmp_path: Path) -> None:
    with fake_server(reply("right")) as server:
        results = play(server.url, tmp_path, branches=1, max_turns=2)
    assert (results[0].end.end, results[0].end.turns) == (End.TURNS, 2)


def test_branches_run_a_few_at_a_time(tmp_path: Path) -> None:
    suite = Numbers()
    with fake_server(reply("right")) as server:
        play(server.url, tmp_path, suite, branches=6, concurrency=1)
    order = [json.dumps(one["messages"]).count("image_url") for one in server.requests]
    assert order == [2, 4, 6, 8, 10] * 6, "one branch after another"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"tasks": ()}, "at least one task"),
        ({"tasks": ("../up",)}, "cannot name a folder"),
        ({"tasks": ("sideways",)}, "numbers has no task sideways; its tasks are up, down"),
        ({"branches": 0}, "branches must be at least 1"),
        ({"retries": -1}, "retries must not be negative"),
        ({"kv_budget": 1.5}, r"kv_budget must be in \(0, 1\]"),
    ],
    ids=["no-task", "path", "unknown-task", "no-branch", "retries", "budget"],
)
def test_wrong_settings_are_refused(changed: dict[str, Any], message: str, tmp_path: Path) -> None:
    with fake_server(reply("right")) as server, pytest.raises(RolloutError, match=message):
        play(server.url, tmp_path, settings=RolloutSettings(**{"tasks": ("up",), **changed}))
