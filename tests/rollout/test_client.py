"""What the client says when the server fails."""

from __future__ import annotations

import asyncio
import time
from http.server import BaseHTTPRequestHandler
from typing import Any

import pytest

from star_kv_sglang.tools.chat import ChatClient, ChatError, Completion
from star_kv_sglang.tools.rollout.server import free_port
from tests.rollout.fake_server import Asking, Chat, FakeServer, completion, fake_server, reply, send


def ask(url: str, *, timeout_s: float = 5.0) -> Completion:
    async def go() -> Completion:
        async with ChatClient(url, timeout_s=timeout_s) as client:
            return await client.chat([{"role": "user", "content": "click red A here"}], max_tokens=8)

    return asyncio.run(go())


def status_500(server: FakeServer, handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
    send(handler, {"message": "the pool is too small"}, 500)


def hangs(server: FakeServer, handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
    time.sleep(4.0)


def hangs_up(server: FakeServer, handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
    handler.close_connection = True


def no_json(server: FakeServer, handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
    send(handler, "<html>")


def no_usage(server: FakeServer, handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
    send(handler, {"id": "1", "choices": [{"message": {"content": "x1 y1"}}]})


def no_choice(server: FakeServer, handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
    send(handler, {**completion("x1 y1"), "choices": []})


@pytest.mark.parametrize(
    ("chat", "message"),
    [
        (status_500, "answered 500: .*the pool is too small"),
        (hangs, "did not answer within 2 s"),
        (hangs_up, "broke off the connection"),
        (no_json, "answered no JSON"),
        (no_usage, "answered in another form"),
        (no_choice, "answered in another form"),
    ],
    ids=["500", "timeout", "disconnect", "html", "no-usage", "no-choice"],
)
def test_a_failed_request_says_why(chat: Chat, message: str) -> None:
    with fake_server(chat) as server, pytest.raises(ChatError, match=message):
        ask(server.url, timeout_s=2 if chat is hangs else 30)


def test_a_server_that_is_not_there_is_named() -> None:
    url = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(ChatError, match=f"{url}/v1/models cannot be reached"):
        ask(url)


def test_figures_of_a_completion() -> None:
    with fake_server(reply(" x4 y4 ")) as server:
        answer = ask(f"{server.url}/v1/")
    assert (answer.text, answer.prompt_tokens, answer.completion_tokens, answer.cached_tokens) == (
        " x4 y4 ",
        100,
        3,
        40,
    )
    assert server.requests[0]["model"] == "tiny" and server.requests[0]["temperature"] == 0
    assert "custom_params" not in server.requests[0]


def test_unreported_cache_hits_are_unknown_not_zero() -> None:
    def chat(server: FakeServer, handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
        send(handler, completion("x4 y4", cached_tokens=None))

    with fake_server(chat) as server:
        assert ask(server.url).cached_tokens is None


def test_seconds_of_attempts_that_came_to_nothing_are_not_those_of_the_answer() -> None:
    def busy(server: FakeServer, handler: Asking, body: dict[str, Any]) -> None:
        send(handler, completion("x4 y4"), 503 if handler.number < 3 else 200)

    async def go(url: str) -> Completion:
        async with ChatClient(url, retries=2, backoff_s=0.3) as client:
            return await client.chat([{"role": "user", "content": "click red A here"}], max_tokens=8)

    with fake_server(busy) as server:
        answer = asyncio.run(go(server.url))
    assert answer.latency_s < 0.9 <= answer.retrying_s


@pytest.mark.parametrize(("reports", "cached"), [(False, None), (True, 40)])
def test_a_server_that_reports_nothing_is_not_believed(reports: bool, cached: int | None) -> None:
    """SGLang without --enable-cache-report says 0 for a prompt with an image."""

    async def go(url: str) -> Completion:
        async with ChatClient(url) as client:
            await client.server_info()
            return await client.chat([{"role": "user", "content": "click red A here"}], max_tokens=8)

    with fake_server(reply("x4 y4"), info={"enable_cache_report": reports}) as server:
        assert asyncio.run(go(server.url)).cached_tokens == cached
