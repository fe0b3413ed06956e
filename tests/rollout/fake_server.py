"""An OpenAI-compatible server of a few lines, for what a real one cannot be brought to do."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Asking(BaseHTTPRequestHandler):
    """One request.

    Attributes:
        number: Of the request, from 1, in order of arrival: others may arrive while it is answered.
    """

    number: int


Chat = Callable[["FakeServer", Asking, dict[str, Any]], None]


@dataclass
class FakeServer:
    """What the server knows and has seen.

    Attributes:
        chat: Answers a request.
        info, metrics: The pages of those names; None where there is none.
        url: Its address.
        requests: Bodies of the requests so far, in order of arrival.
        lock: Over what several requests change at a time.
        pages_are_gone: Whether it breaks off the connection of those who ask for a page.
    """

    chat: Chat
    info: dict[str, Any] | None = None
    metrics: str | None = None
    url: str = ""
    requests: list[dict[str, Any]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)
    pages_are_gone: bool = False


def send(handler: BaseHTTPRequestHandler, body: object, status: int = 200) -> None:
    """Answers with JSON, or with a string as it is."""
    data = (body if isinstance(body, str) else json.dumps(body)).encode()
    # A client whose rollout has ended does not wait for its answer.
    with suppress(BrokenPipeError, ConnectionResetError):
        handler.send_response(status)
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        handler.wfile.write(data)


def completion(text: str, *, prompt_tokens: int = 100, cached_tokens: int | None = 40) -> dict[str, Any]:
    """A chat completion as SGLang words it."""
    details = None if cached_tokens is None else {"cached_tokens": cached_tokens}
    usage = {"prompt_tokens": prompt_tokens, "completion_tokens": 3, "prompt_tokens_details": details}
    return {"id": "request-1", "choices": [{"message": {"content": text}}], "usage": usage}


def reply(text: str) -> Chat:
    """A server that always says the same."""

    def chat(server: FakeServer, handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
        send(handler, completion(text))

    return chat


@contextmanager
def fake_server(
    chat: Chat, *, info: dict[str, Any] | None = None, metrics: str | None = None, port: int = 0
) -> Iterator[FakeServer]:
    """Serves while the body runs, on a free port by default."""
    fake = FakeServer(chat, info, metrics)

    class Handler(Asking):
        def do_GET(self) -> None:
            pages = {"/v1/models": {"data": [{"id": "tiny"}]}, "/server_info": fake.info, "/metrics": fake.metrics}
            page = pages.get(self.path)
            if fake.pages_are_gone:
                self.close_connection = True
                return
            send(self, {"error": "no such page"} if page is None else page, 404 if page is None else 200)

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with fake.lock:
                fake.requests.append(body)
                self.number = len(fake.requests)
            fake.chat(fake, self, body)

        def log_message(self, format: str, *args: object) -> None:
            """Keeps the test's output clean."""

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    server.daemon_threads = True
    fake.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield fake
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
