"""The client's verdicts: a request's failure, or the server's."""

from __future__ import annotations

import asyncio
import time

import pytest

from star_kv_sglang.tools.chat import ChatClient, Completion, RequestError, ServerGoneError
from tests.eval.fake_server import FakeServer


def ask(server: FakeServer, url: str | None = None, *, retries: int = 2, timeout_s: float = 10.0) -> Completion:
    async def go() -> Completion:
        async with ChatClient(
            url or server.url,
            api_key="secret",
            retries=retries,
            timeout_s=timeout_s,
            backoff_s=0.01,
            when_gone="run it again: it goes on where it stopped",
        ) as client:
            messages = [{"role": "user", "content": "hi"}]
            return await client.chat(messages, model="tiny", max_tokens=7, cache_salt="s")

    return asyncio.run(go())


@pytest.mark.parametrize("suffix", ["", "/", "/v1", "/v1/"])
def test_a_request_and_its_answer(server: FakeServer, suffix: str) -> None:
    server.answer = lambda body: "hello"
    completion = ask(server, server.url + suffix)
    assert (completion.text, completion.finish_reason) == ("hello", "stop")
    assert (completion.prompt_tokens, completion.cached_tokens, completion.completion_tokens) == (100, 40, 5)
    assert server.requests == [
        {
            "model": "tiny",
            "messages": [{"role": "user", "content": "hi"}],
            "max_tokens": 7,
            "temperature": 0,
            "cache_salt": "s",
        }
    ]


@pytest.mark.parametrize("fault", [408, 429, 500, 503, "drop"])
def test_passing_faults_are_retried(server: FakeServer, fault: int | str) -> None:
    server.faults = [fault, fault]
    assert ask(server).text
    assert len(server.requests) == 3


@pytest.mark.parametrize(
    ("faults", "message", "num_requests"),
    [
        pytest.param([503] * 3, "answered 503", 3, id="busy-to-the-end"),
        pytest.param([400], "answered 400: .*fault 400", 1, id="refused"),
        pytest.param([413], "answered 413", 1, id="too-large"),
        pytest.param(["garbage"], "answered no JSON but .*html", 1, id="garbage"),
    ],
)
def test_a_request_fails(server: FakeServer, faults: list[int | str | None], message: str, num_requests: int) -> None:
    server.faults = faults
    with pytest.raises(RequestError, match=message):
        ask(server)
    assert len(server.requests) == num_requests


@pytest.mark.parametrize(
    ("faults", "message"),
    [
        pytest.param(["drop"] * 3, "broke off the connection .*goes on where it stopped", id="gone"),
        pytest.param([401], "check --api-key", id="unauthorised"),
        pytest.param([404], "check --base-url and --model", id="not-found"),
    ],
)
def test_a_server_fails(server: FakeServer, faults: list[int | str | None], message: str) -> None:
    server.faults = faults
    with pytest.raises(ServerGoneError, match=message):
        ask(server)


def test_no_server_at_all() -> None:
    closed = FakeServer()
    with closed:
        url = closed.url
    with pytest.raises(ServerGoneError, match="cannot be reached"):
        ask(closed, url)


def test_a_slow_answer_is_not_asked_for_twice(server: FakeServer) -> None:
    def slow(body: dict[str, object]) -> str:
        time.sleep(0.6)
        return "late"

    server.answer = slow
    with pytest.raises(RequestError, match=r"within 0\.2 s \(--timeout\)"):
        ask(server, timeout_s=0.2)
    assert len(server.requests) == 1


def test_what_the_server_says_of_itself(server: FakeServer) -> None:
    async def go() -> tuple[str, dict[str, object]]:
        async with ChatClient(server.url, backoff_s=0.01) as client:
            return await client.model(), await client.kv_settings()

    assert asyncio.run(go()) == ("tiny", {"kv_budget": 0.2, "kv_policy": "star"})


def test_a_server_without_models(server: FakeServer) -> None:
    server.models = []

    async def go() -> str:
        async with ChatClient(server.url) as client:
            return await client.model()

    with pytest.raises(ServerGoneError, match="lists no model; give --model"):
        asyncio.run(go())
