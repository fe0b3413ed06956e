"""What breaks in a rollout ends in one clear line, the others go on, and nothing that was played is lost."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from star_kv_sglang.tools.chat import ServerGoneError
from star_kv_sglang.tools.rollout import Action, ActionRefusedError, End, RolloutError, read_trace
from star_kv_sglang.tools.rollout.server import free_port
from star_kv_sglang.tools.rollout.trace import TRACE_FORMAT, without_measurements
from tests.rollout.fake_server import Asking, FakeServer, completion, fake_server, reply, send
from tests.rollout.small_world import Faults, Number, Numbers, play


def traces(folder: Path) -> dict[str, list[dict[str, Any]]]:
    return {str(path.relative_to(folder)): without_measurements(path) for path in sorted(folder.rglob("*.jsonl"))}


def recorded_faults(folder: Path) -> list[str]:
    return [json.loads(line)["fault"] for line in (folder / "faults.jsonl").read_text().splitlines()]


class Breaks(Number):
    """Raises at a step, for the first so many environments."""

    broken = 0

    def __init__(self, times: int, at: int = 3) -> None:
        super().__init__()
        self._times, self._at = times, at

    async def step(self, action: Action) -> None:
        if self.number == self._at and type(self).broken < self._times:
            type(self).broken += 1
            raise OSError("the cable is out\nand more")
        await super().step(action)


class Hangs(Breaks):
    async def step(self, action: Action) -> None:
        try:
            await super().step(action)
        except OSError:
            await asyncio.sleep(60)


@pytest.fixture(autouse=True)
def whole() -> Iterator[None]:
    Breaks.broken = Hangs.broken = 0
    yield


@pytest.fixture
def untroubled(tmp_path: Path) -> dict[str, list[dict[str, Any]]]:
    """The traces of a rollout without faults."""
    with fake_server(reply("right")) as server:
        play(server.url, tmp_path / "untroubled")
    return traces(tmp_path / "untroubled" / "traces")


def test_an_environment_that_raises_once_is_replaced_and_brought_to_its_place(
    tmp_path: Path, untroubled: dict[str, Any]
) -> None:
    watcher = Faults()
    with fake_server(reply("right")) as server:
        results = play(server.url, tmp_path / "out", Numbers(lambda: Breaks(1)), watcher=watcher)
    assert [one.success for one in results] == [True, True]
    assert traces(tmp_path / "out" / "traces") == untroubled
    assert [text for _, text in watcher.faults] == ["the environment broke at an action: OSError: the cable is out"]
    assert recorded_faults(tmp_path / "out") == [text for _, text in watcher.faults]
    assert sum(one.end.measured["retries"] for one in results) == 1


def test_an_environment_that_always_raises_fails_its_branch_alone(tmp_path: Path, untroubled: dict[str, Any]) -> None:
    class OnlyFirst(Breaks):
        opened = 0

        def __init__(self) -> None:
            type(self).opened += 1
            super().__init__(99, at=3 if type(self).opened == 1 or type(self).opened > 2 else -1)

    with fake_server(reply("right")) as server:
        results = play(server.url, tmp_path / "out", Numbers(OnlyFirst), retries=1)
        broken, fine = sorted(results, key=lambda one: one.success)
        assert (fine.success, broken.end.end) == (True, End.FAILED)
        assert broken.end.error == "the environment broke at an action: OSError: the cable is out"
        assert [row.turn for row in broken.rows] == [0, 1, 2]
        again = play(server.url, tmp_path / "out")
    assert [one.success for one in again] == [True, True]
    assert traces(tmp_path / "out" / "traces") == untroubled


def test_an_environment_that_hangs_is_given_up_in_time(tmp_path: Path, untroubled: dict[str, Any]) -> None:
    started = time.monotonic()
    with fake_server(reply("right")) as server:
        results = play(server.url, tmp_path / "out", Numbers(lambda: Hangs(1)), environment_timeout_s=0.3)
    assert all(one.success for one in results) and time.monotonic() - started < 5
    assert traces(tmp_path / "out" / "traces") == untroubled
    assert recorded_faults(tmp_path / "out") == ["the environment hangs: an action took more than 0.3 s"]


def test_an_environment_that_does_not_repeat_itself_is_told(tmp_path: Path) -> None:
    class Different(Number):
        opened = 0

        async def reset(self, seed: int) -> str:
            type(self).opened += 1
            return await super().reset(type(self).opened)

        async def step(self, action: Action) -> None:
            if type(self).opened == 1 and self.number == 3:
                raise OSError("once")
            await super().step(action)

    with fake_server(reply("right")) as server:
        results = play(server.url, tmp_path, Numbers(Different), branches=1, retries=1)
    assert (results[0].end.end, len(results[0].rows)) == (End.FAILED, 2)
    assert results[0].end.error == (
        "the environment does not repeat itself: turn 0 shows another screen than in the trace"
    )


class Refuses(Number):
    """The first environment breaks at a number, and the third refuses what the first has done before."""

    opened = 0

    def __init__(self) -> None:
        super().__init__()
        type(self).opened += 1
        self._which = type(self).opened

    async def step(self, action: Action) -> None:
        if (self._which, self.number) == (1, 3):
            raise OSError("once")
        if (self._which, self.number) == (3, 1):
            raise ActionRefusedError("no clicks today")
        await super().step(action)


def test_an_action_that_is_refused_on_the_way_back_fails_its_branch_alone(tmp_path: Path) -> None:
    """The first branch's environment breaks, the second branch's does not, and the third is the first's again."""
    Refuses.opened = 0
    with fake_server(reply("right")) as server:
        results = play(server.url, tmp_path, Numbers(Refuses), retries=1)
    failed, fine = sorted(results, key=lambda one: one.success)
    assert (failed.end.end, fine.success) == (End.FAILED, True)
    assert failed.end.error == (
        "the environment does not repeat itself: turn 1 refuses what it did in the trace (no clicks today)"
    )


@pytest.mark.parametrize("what", ["reset", "screenshot", "score"])
def test_a_refusal_of_what_is_no_action_is_a_fault(what: str, tmp_path: Path) -> None:
    class Shy(Number):
        pass

    async def refuse(*words: object) -> None:
        raise ActionRefusedError("not now")

    setattr(Shy, what, refuse)
    with fake_server(reply("right")) as server:
        results = play(server.url, tmp_path, Numbers(Shy), retries=0)
    places = {"reset": "its beginning", "screenshot": "a screenshot", "score": "its score"}
    assert [one.end.error for one in results] == [
        f"the environment broke at {places[what]}: ActionRefusedError: not now"
    ] * 2


def replies(*texts: str) -> Any:
    """A server that says one thing after another, the last one from then on."""

    def chat(server: FakeServer, handler: Asking, body: dict[str, Any]) -> None:
        send(handler, completion(texts[min(handler.number, len(texts)) - 1]))

    return chat


@pytest.mark.parametrize(
    ("said", "error"),
    [
        ("hello", "'hello' is no side"),
        ("outside", "click at (1.20, 0.50) is outside the screen, whose corners are (0, 0) and (1, 1)"),
        ("", "'' is no side"),
    ],
    ids=["no-action", "outside", "nothing"],
)
def test_what_cannot_be_done_costs_a_turn_and_the_model_is_told(said: str, error: str, tmp_path: Path) -> None:
    with fake_server(replies(said, "right")) as server:
        results = play(server.url, tmp_path, branches=1, max_turns=15)
    assert results[0].success and len(results[0].rows) == 6
    assert (results[0].rows[0].error, results[0].rows[0].actions) == (error, ())
    assert server.requests[1]["messages"][3]["content"][0] == {"type": "text", "text": f"Not done: {error}."}


def test_a_branch_that_says_nothing_useful_gives_up(tmp_path: Path) -> None:
    with fake_server(reply("hello")) as server:
        results = play(server.url, tmp_path, branches=1, max_mistakes=3)
    assert (results[0].end.end, results[0].end.turns, results[0].end.reward) == (End.GAVE_UP, 3, 0.0)


def test_a_request_that_is_refused_fails_its_branch_alone(tmp_path: Path) -> None:
    def chat(server: FakeServer, handler: Asking, body: dict[str, Any]) -> None:
        if handler.number == 4:
            send(handler, {"message": "the prompt is too long"}, 413)
        else:
            send(handler, completion("right"))

    with fake_server(chat) as server:
        results = play(server.url, tmp_path, concurrency=1)
    assert [one.end.end for one in results] == [End.FAILED, End.DONE]
    assert "answered 413" in str(results[0].end.error) and len(results[0].rows) == 3


def test_a_server_that_comes_back_is_waited_for(tmp_path: Path, untroubled: dict[str, Any]) -> None:
    port, restarted = free_port(), threading.Event()

    def goes(server: FakeServer, handler: Asking, body: dict[str, Any]) -> None:
        if handler.number == 4:
            restarted.set()
        if restarted.is_set():
            handler.close_connection = True
        else:
            send(handler, completion("right"))

    def serve() -> None:
        with fake_server(goes, port=port):
            restarted.wait(20)
        time.sleep(0.5)
        with fake_server(reply("right"), port=port):
            finished.wait(20)

    finished = threading.Event()
    thread = threading.Thread(target=serve)
    thread.start()
    try:
        while not _answers(port):
            time.sleep(0.05)
        results = play(f"http://127.0.0.1:{port}", tmp_path / "out", patience_s=15.0)
    finally:
        finished.set()
        thread.join()
    assert all(one.success for one in results)
    assert traces(tmp_path / "out" / "traces") == untroubled


@pytest.mark.parametrize("status", [502, 503, 504])
def test_a_server_that_a_proxy_does_not_reach_is_waited_for(
    status: int, tmp_path: Path, untroubled: dict[str, Any]
) -> None:
    def chat(server: FakeServer, handler: Asking, body: dict[str, Any]) -> None:
        send(handler, completion("right"), status if 4 <= handler.number < 6 else 200)

    with fake_server(chat) as server:
        results = play(server.url, tmp_path / "out", patience_s=15.0)
    assert traces(tmp_path / "out" / "traces") == untroubled
    waited = [row.measured for one in results for row in one.rows if row.measured["waiting_s"] >= 0.5]
    assert waited and all(one["server_s"] < 0.5 for one in waited), "waiting is not the server's time"


def test_a_proxy_that_reaches_no_server_ends_the_rollout_in_time(tmp_path: Path) -> None:
    def chat(server: FakeServer, handler: Asking, body: dict[str, Any]) -> None:
        send(handler, {"message": "no upstream"}, 503)

    with fake_server(chat) as server, pytest.raises(ServerGoneError, match=r"answered 503: .*no upstream"):
        play(server.url, tmp_path, patience_s=0.3)


def test_pauses_between_attempts_are_booked_as_waiting(tmp_path: Path) -> None:
    def chat(server: FakeServer, handler: Asking, body: dict[str, Any]) -> None:
        send(handler, completion("right"), 429 if handler.number == 2 else 200)

    with fake_server(chat) as server:
        results = play(server.url, tmp_path, branches=1, client_retries=1)
    measured = results[0].rows[1].measured
    assert measured["waiting_s"] >= 1.0 > measured["server_s"] + measured["own_s"]


def test_a_request_that_a_server_dropped_at_its_end_is_asked_again(tmp_path: Path, untroubled: dict[str, Any]) -> None:
    def chat(server: FakeServer, handler: Asking, body: dict[str, Any]) -> None:
        answer = completion("rig" if handler.number == 4 else "right")
        if handler.number == 4:
            answer["choices"][0]["finish_reason"] = "abort"
        send(handler, answer)

    with fake_server(chat) as server:
        play(server.url, tmp_path / "out", patience_s=5.0)
    assert traces(tmp_path / "out" / "traces") == untroubled


def test_a_server_that_stays_away_ends_the_rollout_and_it_goes_on_later(
    tmp_path: Path, untroubled: dict[str, Any]
) -> None:
    def goes(server: FakeServer, handler: Asking, body: dict[str, Any]) -> None:
        if handler.number > 4:
            handler.close_connection = True
        else:
            send(handler, completion("right"))

    with fake_server(goes) as server, pytest.raises(ServerGoneError, match="broke off the connection"):
        play(server.url, tmp_path / "out", patience_s=0.3)
    played = sum(len(read_trace(path)[1]) for path in (tmp_path / "out" / "traces").rglob("*.jsonl"))
    assert played == 4
    with fake_server(reply("right")) as server:
        play(server.url, tmp_path / "out")
        assert len(server.requests) == 10 - 4, "nothing that was answered is asked again"
    assert traces(tmp_path / "out" / "traces") == untroubled


def test_a_trace_that_was_cut_in_mid_line_goes_on(tmp_path: Path, untroubled: dict[str, Any]) -> None:
    with fake_server(reply("right")) as server:
        play(server.url, tmp_path / "out")
        path = tmp_path / "out" / "traces" / "up" / "1.jsonl"
        lines = path.read_bytes().splitlines(keepends=True)
        path.write_bytes(b"".join(lines[:3]) + lines[3][:20])
        asked = len(server.requests)
        play(server.url, tmp_path / "out")
        assert len(server.requests) - asked == 3
    assert traces(tmp_path / "out" / "traces") == untroubled


def test_two_rollouts_into_one_folder_are_refused(tmp_path: Path) -> None:
    errors: list[str] = []

    def chat(server: FakeServer, handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
        if not errors:
            try:
                play(server.url, tmp_path)
            except RolloutError as error:
                errors.append(str(error))
        send(handler, completion("right"))

    with fake_server(chat) as server:
        assert all(one.success for one in play(server.url, tmp_path))
    assert len(errors) == 1 and "is in use: another rollout (process " in errors[0] and "\n" not in errors[0]


def test_another_rollout_in_the_folder_is_refused(tmp_path: Path) -> None:
    with fake_server(reply("right")) as server:
        play(server.url, tmp_path)
        with pytest.raises(RolloutError, match=r"holds another rollout \(seed: 0 there, 1 now\); give another --out"):
            play(server.url, tmp_path, seed=1)
        assert all(one.success for one in play(server.url, tmp_path, concurrency=1, patience_s=1.0))


def test_another_policy_of_the_server_is_refused(tmp_path: Path) -> None:
    """What is no policy's may change, and so may whether its tree is shown."""
    half, third = ({"kv_policy": "star", "kv_budget": budget, "tp_size": 1} for budget in (0.5, 0.3))
    with fake_server(reply("right"), info=half) as server:
        play(server.url, tmp_path)
    kept = {"kv_budget": 0.5, "kv_policy": "star"}
    assert json.loads((tmp_path / "rollout.json").read_text())["server_kv"] == kept
    with fake_server(reply("right"), info=third) as server, pytest.raises(RolloutError) as raised:
        play(server.url, tmp_path)
    assert f"holds another rollout (server_kv: {kept} there, { ({**kept, 'kv_budget': 0.3}) } now)" in str(raised.value)
    with fake_server(reply("right"), info={**half, "tp_size": 2, "kv_introspection": "content"}) as server:
        assert all(one.success for one in play(server.url, tmp_path))


@pytest.mark.parametrize("file", ["rollout.json", "traces/up/0.jsonl"])
def test_what_another_version_wrote_is_refused(file: str, tmp_path: Path) -> None:
    with fake_server(reply("right")) as server:
        play(server.url, tmp_path)
        path = tmp_path / file
        path.write_text(path.read_text().replace(TRACE_FORMAT, "star-kv rollout trace 0"))
        before = path.read_bytes()
        with pytest.raises(RolloutError, match=f"{path.name} is of the format 'star-kv rollout trace 0'"):
            play(server.url, tmp_path)
        assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("line", "message"),
    [("[1]", "line 3 is no object"), ("{", "line 3 is no JSON"), ('{"turn": 1}', "line 3 is damaged")],
    ids=["list", "json", "field"],
)
def test_a_damaged_trace_is_refused_by_line(line: str, message: str, tmp_path: Path) -> None:
    with fake_server(reply("right")) as server:
        play(server.url, tmp_path)
        path = tmp_path / "traces" / "up" / "0.jsonl"
        lines = path.read_text().splitlines()
        path.write_text("\n".join([*lines[:2], line, *lines[3:]]) + "\n")
        with pytest.raises(RolloutError, match=message):
            play(server.url, tmp_path)


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
