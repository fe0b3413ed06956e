"""What a client sends of its screenshots: bytes once, digests later, bytes where a server asks for them."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import logging
from http.server import BaseHTTPRequestHandler
from typing import Any

import pytest

from star_kv_sglang.tools import image_references
from star_kv_sglang.tools.bench.serve.client import EngineClient, Prompt, Stream
from star_kv_sglang.tools.bench.serve.errors import ServeBenchError
from star_kv_sglang.tools.chat import ChatClient, RequestError
from star_kv_sglang.tools.image_references import image_urls
from tests.rollout.fake_server import FakeServer, completion, fake_server, send

DATA = [f"picture {number}".encode() for number in range(4)]
URLS = ["data:image/png;base64," + base64.b64encode(data).decode() for data in DATA]
DIGESTS = [f"sha256:{hashlib.sha256(data).hexdigest()}" for data in DATA]


def messages(*numbers: int) -> list[dict[str, Any]]:
    """A conversation about screenshots, a turn for each."""
    turns: list[dict[str, Any]] = []
    for number in numbers:
        content = [{"type": "text", "text": "read"}, {"type": "image_url", "image_url": {"url": URLS[number]}}]
        turns += [{"role": "user", "content": content}, {"role": "assistant", "content": "x1"}]
    return turns[:-1]


class Knowing:
    """A server that takes references to what it was sent under the same salt."""

    def __init__(self) -> None:
        self.known: set[tuple[str | None, str]] = set()
        self.always_unknown = False

    def __call__(self, server: FakeServer, handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
        salt, images = body.get("cache_salt"), images_of(body)
        named = [one for one in images if one.startswith("sha256:")]
        unknown = [one for one in named if (salt, one) not in self.known or self.always_unknown]
        if unknown:
            send(handler, {"message": "send bytes", "unknown_images": unknown}, 422)
            return
        self.known |= {(salt, DIGESTS[URLS.index(one)]) for one in images if one in URLS}
        answer(handler, body)


def answer(handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
    if "messages" in body:
        send(handler, completion("x1"))
    else:
        send(handler, 'data: {"text": "x1", "meta_info": {"completion_tokens": 1}}\n\ndata: [DONE]\n\n')


def images_of(body: dict[str, Any]) -> list[str]:
    """A request's images, of either endpoint."""
    return image_urls(body["messages"]) if "messages" in body else list(body["image_data"])


def sent(server: FakeServer) -> list[str]:
    """The requests so far, a letter for each image: bytes or reference."""
    return ["".join("r" if one in DIGESTS else "b" for one in images_of(body)) for body in server.requests]


def hold(server: FakeServer, turns: list[tuple[int, ...]], *, salts: list[str | None] | None = None) -> None:
    async def go() -> None:
        async with ChatClient(server.url, timeout_s=5) as client:
            for numbers, salt in zip(turns, salts or [None] * len(turns), strict=True):
                asked = messages(*numbers)
                said = await client.chat(asked, model="tiny", max_tokens=4, cache_salt=salt)
                assert said.text == "x1"
                assert asked == messages(*numbers)

    asyncio.run(go())


def test_bytes_the_first_time_and_digests_later() -> None:
    with fake_server(Knowing()) as server:
        hold(server, [(0,), (0, 1), (0, 1, 2), (2, 1)])
    assert sent(server) == ["b", "rb", "rrb", "rr"]
    first = server.requests[2]["messages"][0]["content"]
    assert first == [{"type": "text", "text": "read"}, {"type": "image_url", "image_url": {"url": DIGESTS[0]}}]


def test_only_what_a_server_asks_for_is_sent_again() -> None:
    knowing = Knowing()
    with fake_server(knowing) as server:
        hold(server, [(0, 1, 2)])
        hold_again = [(0, 1, 2), (0, 1, 2), (0, 1, 2)]

        async def go() -> None:
            async with ChatClient(server.url, timeout_s=5) as client:
                await client.chat(messages(*hold_again[0]), model="tiny", max_tokens=4)
                knowing.known.discard((None, DIGESTS[1]))
                await client.chat(messages(*hold_again[1]), model="tiny", max_tokens=4)
                await client.chat(messages(*hold_again[2]), model="tiny", max_tokens=4)

        asyncio.run(go())
    assert sent(server) == ["bbb", "bbb", "rrr", "rbr", "rrr"]


def test_another_salt_gets_the_bytes() -> None:
    with fake_server(Knowing()) as server:
        hold(server, [(0,), (0,), (0,), (0,)], salts=["a", "b", "a", None])
    assert sent(server) == ["b", "b", "r", "b"]


def test_a_server_that_never_knows_gets_bytes_in_the_second_request() -> None:
    knowing = Knowing()
    knowing.always_unknown = True
    with fake_server(knowing) as server:
        hold(server, [(0,), (0, 1), (0, 1)])
    assert sent(server) == ["b", "rb", "bb", "rr", "bb"]


@pytest.mark.parametrize("status", [400, 422, 500])
def test_a_server_that_knows_no_references_gets_bytes_for_good(status: int, caplog: pytest.LogCaptureFixture) -> None:
    def stock(server: FakeServer, handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
        if any(one in DIGESTS for one in images_of(body)):
            send(handler, {"message": "cannot identify image file"}, status)
        else:
            answer(handler, body)

    with fake_server(stock) as server, caplog.at_level(logging.WARNING):
        hold(server, [(0,), (0, 1), (0, 1), (0, 1, 2)])
    assert sent(server) == ["b", "rb", "bb", "bb", "bbb"]
    assert [record.getMessage() for record in caplog.records if "references" in record.getMessage()] == [
        "the server knows no references to images: screenshots go as bytes from now on"
    ]


def test_one_error_of_a_server_that_takes_references_does_not_end_them(caplog: pytest.LogCaptureFixture) -> None:
    knowing, failed = Knowing(), []

    def shaky(server: FakeServer, handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
        if len(server.requests) == 3:
            failed.append(body)
            send(handler, {"message": "for a moment"}, 500)
        else:
            knowing(server, handler, body)

    with fake_server(shaky) as server, caplog.at_level(logging.WARNING):
        hold(server, [(0,), (0, 1), (0, 1), (0, 1)])
    assert sent(server) == ["b", "rb", "rr", "bb", "rr"]
    assert len(failed) == 1
    assert not [record for record in caplog.records if "references" in record.getMessage()]


def test_a_server_that_forgets_every_time_gets_bytes_in_the_end(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_references, "_MOST_FORGOTTEN", 2)
    knowing = Knowing()
    knowing.always_unknown = True
    with fake_server(knowing) as server, caplog.at_level(logging.WARNING):
        hold(server, [(0,), (0,), (0,), (0,)])
    assert sent(server) == ["b", "r", "b", "r", "b", "b"]
    assert "forgets images between turns" in caplog.text


def test_a_request_that_is_wrong_with_bytes_too_changes_nothing() -> None:
    knowing = Knowing()

    def strict(server: FakeServer, handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
        if body["max_tokens"] > 4:
            send(handler, {"message": "too long"}, 400)
        else:
            knowing(server, handler, body)

    async def go() -> None:
        async with ChatClient(server.url, timeout_s=5) as client:
            await client.chat(messages(0), model="tiny", max_tokens=4)
            with pytest.raises(RequestError, match=r"answered 400: .*too long"):
                await client.chat(messages(0), model="tiny", max_tokens=9)
            await client.chat(messages(0), model="tiny", max_tokens=4)

    with fake_server(strict) as server:
        asyncio.run(go())
    assert sent(server) == ["b", "r", "b", "r"]


def test_without_references_bytes_are_sent() -> None:
    async def go() -> None:
        async with ChatClient(server.url, timeout_s=5, references=False) as client:
            for _ in range(2):
                await client.chat(messages(0), model="tiny", max_tokens=4)

    with fake_server(Knowing()) as server:
        asyncio.run(go())
    assert sent(server) == ["b", "b"]


@pytest.mark.parametrize("url", ["https://a.example/x.png", "data:image/png;base64,not/base64!", "data:image/png,raw"])
def test_what_is_no_base64_travels_as_it_is(url: str) -> None:
    seen: list[list[str]] = []

    def any_image(server: FakeServer, handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
        seen.append(images_of(body))
        answer(handler, body)

    async def go() -> None:
        content = [{"type": "image_url", "image_url": {"url": url}}]
        async with ChatClient(server.url, timeout_s=5) as client:
            for _ in range(2):
                await client.chat([{"role": "user", "content": content}], model="tiny", max_tokens=4)

    with fake_server(any_image) as server:
        asyncio.run(go())
    assert seen == [[url], [url]]


def stream(server: FakeServer, turns: list[tuple[int, ...]], *, references: bool = True) -> list[Stream]:
    """Turns by the bench's client."""

    async def go() -> list[Stream]:
        async with EngineClient(server.url, timeout_s=5, references=references) as client:
            prompts = [Prompt("read", [URLS[number] for number in numbers]) for numbers in turns]
            return [await client.ask(prompt, max_new_tokens=1) for prompt in prompts]

    return asyncio.run(go())


def test_the_bench_counts_what_it_sends() -> None:
    knowing = Knowing()
    with fake_server(knowing) as server:
        stream(server, [(0,), (0, 1)], references=False)
        turns = stream(server, [(0, 1), (0, 1, 2), (0, 1, 2)])
        knowing.always_unknown = True
        again = stream(server, [(0,), (0,)])
    assert sent(server) == ["b", "bb", "bb", "rrb", "rrr", "b", "r", "b"]
    assert all(turn.text == "x1" and turn.done for turn in turns)
    assert again[1].sent_bytes > again[0].sent_bytes, "of both requests"


def test_the_bench_goes_back_to_bytes_when_a_stream_has_begun_and_says_no_elsewhere() -> None:
    def stock(server: FakeServer, handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
        if any(one in DIGESTS for one in images_of(body)):
            send(handler, 'data: {"error": {"message": "no image", "code": 400}}\n\ndata: [DONE]\n\n')
        else:
            answer(handler, body)

    with fake_server(stock) as server:
        stream(server, [(0,), (0,), (0,)])
    assert sent(server) == ["b", "r", "b", "b"]

    def broken(server: FakeServer, handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
        send(handler, {"error": "no"}, 400)

    with fake_server(broken) as server, pytest.raises(ServeBenchError, match="answered 400"):
        stream(server, [(0,)])
