"""The order of requests, what they hold, and the figures that come out."""

from __future__ import annotations

import asyncio
import json
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from star_kv_sglang.tools.chat import ChatClient
from star_kv_sglang.tools.rollout.errors import RolloutError
from star_kv_sglang.tools.rollout.runner import Rollout, count_shared_turns, run, select
from star_kv_sglang.tools.rollout.summary import UNKNOWN, Row, changed, compare, summarize
from star_kv_sglang.tools.rollout.trajectory import Trajectory, save_trajectories
from tests.rollout.cases import two_branches
from tests.rollout.fake_server import FakeServer, completion, fake_server, reply, send
from tests.star_kv import star_kv

METRICS = 'sglang:max_total_num_tokens{tp_rank="0"} 1e+03\nsglang:kv_available_tokens{tp_rank="0"} 250.0\n'
STAR = {
    "kv_policy": "star",
    "internal_states": [
        {"star_kv": {"num_live_tokens": 90, "num_shared_tokens": 60, "num_private_tokens": 30, "num_pruned_tokens": 7}}
    ],
}


def run_against(server: FakeServer, trajectories: list[Trajectory]) -> Rollout:
    async def go() -> Rollout:
        async with ChatClient(server.url, timeout_s=5) as client:
            return await run(client, trajectories)

    return asyncio.run(go())


def test_the_shared_turn_runs_once_and_the_branches_continue_it() -> None:
    with fake_server(reply("x4 y4")) as server:
        rollout = run_against(server, two_branches())
    keys = [(answer.branch, answer.turn, answer.index) for answer in rollout.answers]
    assert keys == [(0, 0, 0), (0, 0, 1), (0, 1, 0), (0, 2, 0), (1, 1, 0), (1, 2, 0)]
    assert rollout.turns_run == 5
    assert len(server.requests) == 6
    begin = server.requests[1]["messages"]
    for request in server.requests[2:]:
        assert request["messages"][: len(begin)] == begin, "a branch must only add to what all have said"


def test_a_conversation_alternates_and_sends_each_screenshot_once() -> None:
    with fake_server(reply("x4 y4")) as server:
        run_against(server, two_branches()[:1])
    messages = server.requests[-1]["messages"]
    assert [message["role"] for message in messages] == ["user", "assistant"] * 3 + ["user"]
    assert [isinstance(message["content"], list) for message in messages[::2]] == [True, False, True, True]
    first = messages[0]["content"]
    assert [part["type"] for part in first] == ["text", "image_url", "text"]
    assert (first[0]["text"], first[2]["text"]) == ("step1", "click red A here")
    assert messages[2]["content"] == "click red B here"


@pytest.mark.parametrize(
    ("info", "shared"),
    [(STAR, [{"kv_share": True}] * 2 + [None] * 4), ({"kv_policy": "full"}, [None] * 6), (None, [None] * 6)],
    ids=["star", "full", "another-server"],
)
def test_only_shared_turns_are_marked_and_only_for_a_policy(info: dict[str, Any] | None, shared: list[object]) -> None:
    with fake_server(reply("x4 y4"), info=info) as server:
        run_against(server, two_branches())
    assert [request.get("custom_params") for request in server.requests] == shared


def test_a_failing_branch_is_named_and_ends_the_rollout() -> None:
    def chat(server: FakeServer, handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
        broken = "red E" in json.dumps(body["messages"][-1])
        send(handler, {"message": "no slots left"} if broken else completion("x4 y4"), 500 if broken else 200)

    with (
        fake_server(chat) as server,
        pytest.raises(RolloutError, match=r"branch 1, turn 1, 'click red E here'.*no slots"),
    ):
        run_against(server, two_branches())


def test_figures_of_a_server_with_a_policy() -> None:
    with fake_server(reply("x4 y4"), info=STAR, metrics=METRICS) as server:
        summary = summarize(run_against(server, two_branches()), "star")
    assert (summary.pool_peak, summary.pool_end) == (750, 750)
    assert (summary.shared_tokens, summary.private_tokens) == (60, 30)
    assert summary.pruned_tokens == 0, "the 7 tokens were pruned before the rollout began"
    assert summary.hit_rate == 0.4
    assert (summary.right, summary.asked) == ({"click": 6}, {"click": 6})


def test_a_stock_server_is_split_by_the_shared_turns() -> None:
    with fake_server(reply("x0 y0"), metrics=METRICS) as server:
        summary = summarize(run_against(server, two_branches()), "full")
    # The last shared prompt has 100 tokens and its reply 3, of which the last one's KV is never computed.
    assert (summary.shared_tokens, summary.private_tokens, summary.pruned_tokens) == (102, -102, 0)
    assert summary.right == {"click": 0}


def test_what_a_server_does_not_report_is_said_to_be_unknown() -> None:
    with fake_server(reply("x4 y4")) as server:
        rollout = run_against(server, two_branches())
    rows = {row.label.strip(): row.cells for row in compare([summarize(rollout, "full")], [rollout])}
    assert rows["tokens in the pool, peak"] == (UNKNOWN,)
    assert rows["private to a branch"] == (UNKNOWN,)
    assert rows["radix hit rate"] == ("40.0%",)
    assert rows["accuracy: click"] == ("100.0% (6 of 6)",)


def test_a_hit_rate_that_is_not_reported_is_no_zero() -> None:
    with fake_server(reply(" x4 y4 "), info={"enable_cache_report": False}) as server:
        rollout = run_against(server, two_branches())
    rows = {row.label.strip(): row.cells for row in compare([summarize(rollout, "full")], [rollout])}
    assert rows["radix hit rate"] == ("not reported (start with --enable-cache-report)",)
    assert {answer.completion.text for answer in rollout.answers} == {"x4 y4"}
    said = [message["content"] for message in server.requests[-1]["messages"] if message["role"] == "assistant"]
    assert set(said) == {"x4 y4"}


def test_changed_outputs_are_counted_against_the_first_column() -> None:
    def other(server: FakeServer, handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
        send(handler, completion("x9 y9" if "red F" in json.dumps(body["messages"][-1]) else "x4 y4"))

    with fake_server(reply("x4 y4")) as server:
        first = run_against(server, two_branches())
    with fake_server(other) as server:
        second = run_against(server, two_branches())
    assert changed(first, second) == (1, 6)
    rows = compare([summarize(first, "full"), summarize(second, "star")], [first, second])
    assert rows[-1] == Row("outputs that changed", ("", "1 of 6"))


def test_shared_turns_end_at_the_first_difference() -> None:
    branches = two_branches()
    assert count_shared_turns(branches) == 1
    assert count_shared_turns([branches[0], branches[0]]) == 3
    assert count_shared_turns(branches[:1]) == 0


@pytest.mark.parametrize(
    ("branches", "turns", "message"),
    [(3, None, "--branches 3"), (0, None, "--branches 0"), (None, 4, "--turns 4"), (None, 0, "--turns 0")],
)
def test_more_than_the_file_holds_is_refused(branches: int | None, turns: int | None, message: str) -> None:
    with pytest.raises(RolloutError, match=message):
        select(two_branches(), branches, turns)


def test_the_command_writes_answers_pool_and_summary(tmp_path: Path) -> None:
    save_trajectories(two_branches(), tmp_path / "t.json")
    words = ["rollout", str(tmp_path / "t.json"), "--turns", "2", "--out", str(tmp_path / "out"), "--base-url"]
    with fake_server(reply("x4 y4"), metrics=METRICS) as server:
        result = star_kv([*words, server.url])
    assert result.exit_code == 0, result.output
    assert "100.0% (4 of 4)" in result.output
    answers = [json.loads(line) for line in (tmp_path / "out" / "answers.jsonl").read_text().splitlines()]
    assert [row["correct"] for row in answers] == [True] * 4
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["num_shared_turns"] == 1
    pool = [json.loads(line) for line in (tmp_path / "out" / "pool.jsonl").read_text().splitlines()]
    assert {row["resident_tokens"] for row in pool} == {750}


def test_what_was_answered_before_a_failure_is_kept(tmp_path: Path) -> None:
    save_trajectories(two_branches()[:1], tmp_path / "t.json")

    def chat(server: FakeServer, handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
        broken = len(server.requests) > 2
        send(handler, {"message": "gone"} if broken else completion("x4 y4"), 503 if broken else 200)

    with fake_server(chat) as server:
        words = ["rollout", str(tmp_path / "t.json"), "--out", str(tmp_path / "out"), "--base-url", server.url]
        result = star_kv(words)
    assert result.exit_code == 2
    assert "answered 503" in result.output
    assert len((tmp_path / "out" / "answers.jsonl").read_text().splitlines()) == 2
