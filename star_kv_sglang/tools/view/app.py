"""The page and what it asks for."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from importlib.resources import files
from types import FrameType
from typing import Any, Final, Protocol

import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from star_kv_sglang.tools.view.errors import ViewError
from star_kv_sglang.tools.view.live import Answer

_HERE: Final = ("127.0.0.1", "localhost", "[")
"""The last is how an IPv6 address begins, which is what Starlette leaves of it: no name does."""
_HEADERS: Final = {
    # Whatever a prompt holds: nothing of it runs, and nothing is fetched from anywhere else.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
_KINDS: Final = {".html": "text/html; charset=utf-8", ".css": "text/css; charset=utf-8", ".js": "text/javascript"}
_PACKAGES: Final = {"base.css": "star_kv_sglang.tools.report"}
"""Files of the page that lie in another package than the page."""
_NEEDS: Final = {"frame": ("node", "start"), "text": ("node",), "screenshot": ("image",)}


class Source(Protocol):
    """What a page shows."""

    @property
    def title(self) -> str:
        """An address, or the name of a file."""

    async def follow(self) -> None:
        """Runs beside the page."""

    def records(self) -> AsyncIterator[dict[str, Any]]:
        """What the page gets, line by line."""

    async def detail(self, kind: str, query: Mapping[str, str]) -> Answer:
        """What it asks for one by one."""

    def end(self) -> None:
        """Nothing more is shown: what `records` gives ends."""


def static(name: str) -> bytes:
    """A file of the page."""
    package = _PACKAGES.get(name, "star_kv_sglang.tools.view")
    return (files(package) / "static" / name).read_bytes()


def make_app(source: Source, hosts: tuple[str, ...] = _HERE) -> Starlette:
    """The page of a source.

    Args:
        source: What it shows.
        hosts: Names under which a browser may ask: another page's script cannot reach this one by a name of its own.
    """

    async def file(request: Request) -> Response:
        name = request.path_params.get("name", "index.html")
        kind = _KINDS.get("." + name.rpartition(".")[2])
        try:
            return Response(static(name), media_type=kind, headers=_HEADERS)
        except (FileNotFoundError, IsADirectoryError):
            return PlainTextResponse("not found", 404, headers=_HEADERS)

    async def records(request: Request) -> Response:
        del request

        async def lines() -> AsyncIterator[bytes]:
            async for record in source.records():
                yield json.dumps(record, separators=(",", ":")).encode() + b"\n"

        return StreamingResponse(lines(), media_type="application/x-ndjson", headers=_HEADERS)

    async def detail(request: Request) -> Response:
        kind = request.path_params["kind"]
        if kind not in _NEEDS:
            return PlainTextResponse("not found", 404, headers=_HEADERS)
        query = {name: value for name in _NEEDS[kind] if (value := request.query_params.get(name)) is not None}
        if len(query) < len(_NEEDS[kind]):
            return PlainTextResponse(f"{', '.join(_NEEDS[kind])} must be given", 400, headers=_HEADERS)
        time = request.query_params.get("time")
        body, media = await source.detail(kind, query | ({"time": time} if time else {}))
        return Response(body, 200, _HEADERS, media)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        del app
        task = asyncio.create_task(source.follow())
        yield
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task

    return Starlette(
        routes=[
            Route("/", file),
            Route("/static/{name:str}", file),
            Route("/records", records),
            Route("/detail/{kind:str}", detail),
        ],
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=list(hosts), www_redirect=False)],
        lifespan=lifespan,
    )


def listen(host: str, port: int) -> socket.socket:
    """The socket of the page.

    Args:
        host: Address of this machine.
        port: 0 for a free one.

    Raises:
        ViewError: Nobody can listen there.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        # Who opens the page as soon as its address is printed waits, and is not refused.
        listener.listen()
    except (OSError, OverflowError) as error:
        listener.close()
        raise ViewError(f"--host {host} --port {port}: cannot be listened at ({error}); give another --port") from error
    return listener


def address_of(listener: socket.socket) -> str:
    """Where a browser finds the page."""
    host, port = listener.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def serve(source: Source, listener: socket.socket) -> None:
    """Show the page until Ctrl-C."""
    host = listener.getsockname()[0]
    # Whoever listens to the whole network says by this that names are not to be told apart.
    hosts = (*_HERE, host) if host not in ("0.0.0.0", "::") else ("*",)
    config = uvicorn.Config(
        make_app(source, hosts), log_level="warning", timeout_graceful_shutdown=1, access_log=False, lifespan="on"
    )
    # uvicorn ends in order, and then raises what ended it, or not, as the moment has it.
    with suppress(KeyboardInterrupt):
        _Server(config, source).run(sockets=[listener])


class _Server(uvicorn.Server):
    """Ends the pages' streams when it is told to end: it would wait for them, and complain.

    Args:
        config: Of the server.
        source: What the pages show.
    """

    def __init__(self, config: uvicorn.Config, source: Source) -> None:
        super().__init__(config)
        self._source = source

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """SIGINT or SIGTERM has come."""
        self._source.end()
        super().handle_exit(sig, frame)
