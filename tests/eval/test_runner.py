"""Runs against a server: protocols, failures, and going on where a run stopped."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from star_kv_sglang.tools.chat import ChatClient, ServerGoneError
from star_kv_sglang.tools.eval.errors import RunFolderError
from star_kv_sglang.tools.eval.runner import Protocol, Settings, fingerprint, pending, run
from star_kv_sglang.tools.eval.samples import Dataset
from star_kv_sglang.tools.eval.store import RunFolder, Status, load_run
from tests.eval.cases import Colours, settings
from tests.eval.fake_server import FakeServer


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return Colours().load(tmp_path, None)


def go(server: FakeServer, dataset: Dataset, out: Path, how: Settings, concurrency: int = 4) -> int:
    """Runs; returns how many results came."""
    seen = []

    async def work() -> None:
        async with ChatClient(server.url, retries=0, backoff_s=0.01) as client:
            with RunFolder(out, how.describe(dataset), "test") as folder:
                await run(client, how, dataset, folder, concurrency=concurrency, on_result=seen.append)

    asyncio.run(work())
    return len(seen)


def question(body: dict[str, Any]) -> str:
    """``a0`` and the like: what a request asks last."""
    return str(body["messages"][-1]["content"][-1]["text"]).removeprefix("which ").removesuffix("?")


def truthful(body: dict[str, Any]) -> str:
    return f"true{question(body)}"


def test_every_scored_step_is_asked_and_scored(server: FakeServer, dataset: Dataset, tmp_path: Path) -> None:
    server.answer = lambda body: "wrong" if question(body) == "a1" else truthful(body)
    assert go(server, dataset, tmp_path / "out", settings()) == 5
    results = {result.sample: result for result in load_run(tmp_path / "out").results}
    assert sorted(results) == ["a/0", "a/1", "a/2", "b/0", "b/2"]
    assert {sample for sample, result in results.items() if result.score == 0} == {"a/1"}
    one = results["a/0"]
    assert (one.parts, one.groups, one.reply) == ({"first": 1.0}, {"turn": "0 back"}, "truea0")
    assert one.actions == [{"kind": "answer", "text": "truea0"}]
    assert (one.prompt_tokens, one.cached_tokens, one.completion_tokens) == (100, 40, 6)


def test_stateless_steps_share_no_salt(server: FakeServer, dataset: Dataset, tmp_path: Path) -> None:
    go(server, dataset, tmp_path / "out", settings(Protocol.STATELESS))
    assert len(server.salts) == 5 and len(set(server.salts)) == 5
    assert all(len(body["messages"]) in (1, 3, 5) for body in server.requests), "the whole prompt every time"


def test_persistent_turns_come_in_order_under_one_salt(server: FakeServer, dataset: Dataset, tmp_path: Path) -> None:
    go(server, dataset, tmp_path / "out", settings(Protocol.PERSISTENT))
    by_salt: dict[str | None, list[str]] = {}
    for body in server.requests:
        by_salt.setdefault(body["cache_salt"], []).append(question(body))
    assert sorted(by_salt.values()) == [["a0", "a1", "a2"], ["b0", "b1", "b2"]], "b1 is prefilled though not scored"
    tokens = {question(body): body["max_tokens"] for body in server.requests}
    assert tokens["b1"] == 1 and tokens["b0"] == 5


def test_two_runs_share_no_salt(server: FakeServer, dataset: Dataset, tmp_path: Path) -> None:
    go(server, dataset, tmp_path / "one", settings())
    go(server, dataset, tmp_path / "two", settings())
    assert len(set(server.salts)) == 10


def test_salts_can_be_left_out(server: FakeServer, dataset: Dataset, tmp_path: Path) -> None:
    go(server, dataset, tmp_path / "out", settings(cache_salt=False))
    assert all("cache_salt" not in body for body in server.requests)


def test_a_reply_without_an_action_is_wrong(server: FakeServer, dataset: Dataset, tmp_path: Path) -> None:
    server.answer = lambda body: "???"
    go(server, dataset, tmp_path / "out", settings())
    for result in load_run(tmp_path / "out").results:
        assert (result.status, result.score, result.scored) == (Status.UNREADABLE, 0.0, True)
        assert "no lower-case word" in result.error


def test_a_failed_request_is_not_scored_and_is_asked_again(
    server: FakeServer, dataset: Dataset, tmp_path: Path
) -> None:
    server.faults = [None, 400]
    server.answer = truthful
    how = settings()
    go(server, dataset, tmp_path / "out", how, concurrency=1)
    failed = [result for result in load_run(tmp_path / "out").results if not result.scored]
    assert [result.sample for result in failed] == ["a/1"] and "answered 400" in failed[0].error
    server.requests.clear()
    assert go(server, dataset, tmp_path / "out", how) == 1
    assert [question(body) for body in server.requests] == ["a1"]
    assert all(result.score == 1.0 for result in load_run(tmp_path / "out").results)
    assert go(server, dataset, tmp_path / "out", how) == 0, "nothing is left"


def test_persistent_turns_after_a_failure_fail_too(server: FakeServer, dataset: Dataset, tmp_path: Path) -> None:
    server.faults = [None, 400, 400]  # with a reference to the first turn's screenshot, and with its bytes
    server.answer = truthful
    how = settings(Protocol.PERSISTENT)
    go(server, dataset, tmp_path / "out", how, concurrency=1)
    results = {result.sample: result for result in load_run(tmp_path / "out").results}
    assert results["a/0"].scored and not results["a/1"].scored
    assert results["a/2"].error.startswith("not asked: an earlier turn of the episode failed")
    assert [question(body) for body in server.requests] == ["a0", "a1", "a1", "b0", "b1", "b2"]
    server.requests.clear()
    go(server, dataset, tmp_path / "out", how, concurrency=1)
    assert [question(body) for body in server.requests] == ["a0", "a1", "a2"], "from the episode's first turn"
    assert len(set(server.salts)) == 1


def test_a_lost_server_stops_the_run_and_keeps_what_is_done(
    server: FakeServer, dataset: Dataset, tmp_path: Path
) -> None:
    server.faults = [None, None, "drop"]
    server.answer = truthful
    with pytest.raises(ServerGoneError, match="broke off the connection"):
        go(server, dataset, tmp_path / "out", settings(), concurrency=1)
    assert [result.sample for result in load_run(tmp_path / "out").results] == ["a/0", "a/1"]
    assert go(server, dataset, tmp_path / "out", settings(), concurrency=1) == 3


def test_a_screenshot_that_vanished_fails_its_sample(server: FakeServer, dataset: Dataset, tmp_path: Path) -> None:
    (tmp_path / "white.png").unlink()
    go(server, dataset, tmp_path / "out", settings())
    assert {result.status for result in load_run(tmp_path / "out").results} == {Status.FAILED}
    assert "white.png" in load_run(tmp_path / "out").results[0].error


def test_the_results_do_not_depend_on_concurrency(server: FakeServer, dataset: Dataset, tmp_path: Path) -> None:
    server.answer = truthful
    scores = []
    for concurrency in (1, 3, 64):
        go(server, dataset, tmp_path / str(concurrency), settings(), concurrency)
        results = load_run(tmp_path / str(concurrency)).results
        scores.append(sorted((result.sample, result.score, result.reply) for result in results))
    assert scores[0] == scores[1] == scores[2]


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"max_tokens": 6}, id="max_tokens"),
        pytest.param({"protocol": Protocol.PERSISTENT}, id="protocol"),
        pytest.param({"history_frames": 1}, id="history_frames"),
        pytest.param({"model": "other"}, id="model"),
        pytest.param({"server": {"kv_budget": 0.1}}, id="server"),
    ],
)
def test_a_folder_of_another_run_is_refused(
    server: FakeServer, dataset: Dataset, tmp_path: Path, change: dict[str, Any]
) -> None:
    go(server, dataset, tmp_path / "out", settings())
    with pytest.raises(RunFolderError, match=rf"holds another run:\n.*{next(iter(change))}: .*\nGive another --out"):
        go(server, dataset, tmp_path / "out", settings(**change))


def test_pending_counts_what_is_missing(dataset: Dataset, tmp_path: Path) -> None:
    with RunFolder(tmp_path / "out", {}, "x") as folder:
        assert pending(dataset, folder) == 5


def test_a_fingerprint_follows_the_samples(dataset: Dataset, tmp_path: Path) -> None:
    again = Colours().load(tmp_path, None)
    assert fingerprint(dataset) == fingerprint(again)
    assert fingerprint(dataset) != fingerprint(Dataset(dataset.episodes[:1]))
