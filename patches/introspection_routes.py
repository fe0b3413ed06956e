"""The routes ``/star_kv/*`` of SGLang's HTTP server, behind the keys that SGLang asks for its own administration."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from star_kv_sglang.images import runtime as images
from star_kv_sglang.introspection import protocol
from star_kv_sglang.introspection.screenshots import flat
from star_kv_sglang.introspection.service import Introspection

if TYPE_CHECKING:
    from sglang.srt.managers.tokenizer_manager import TokenizerManager

PATHS = ("tree", "frame", "text", "screenshot")

_asking: set[asyncio.Future[Any]] = set()
"""Questions that are under way; the event loop alone would not keep them."""
_services: weakref.WeakKeyDictionary[TokenizerManager, Introspection] = weakref.WeakKeyDictionary()


def add_routes() -> None:
    """Give SGLang's app the routes; once is enough. A server that shows nothing answers them as unknown ones."""
    from sglang.srt.entrypoints.http_server import app
    from sglang.srt.utils.auth import AuthLevel, auth_level

    protected = auth_level(AuthLevel.ADMIN_OPTIONAL)(_handle)
    known = {getattr(route, "path", None) for route in app.router.routes}
    for path in PATHS:
        if f"/star_kv/{path}" not in known:
            app.router.add_route(f"/star_kv/{path}", protected, methods=["GET"], include_in_schema=False)


async def _handle(request: Any) -> Any:
    from sglang.srt.entrypoints import http_server

    manager = _manager()
    mode = getattr(manager.server_args, "kv_introspection", protocol.OFF)
    if mode == protocol.OFF:
        return http_server.orjson_response({"detail": "Not Found"}, 404)
    service = _service(manager, mode)
    reply = await service.reply(request.url.path.rpartition("/")[2], dict(request.query_params))
    if isinstance(reply.body, bytes):
        response = http_server.Response(reply.body, reply.status, media_type=reply.kind)
        response.headers["Content-Security-Policy"] = "default-src 'none'"
    else:
        response = http_server.orjson_response(reply.body, reply.status)
    response.headers["Cache-Control"] = "no-store"
    response.headers["X-Content-Type-Options"] = "nosniff"
    return response


def _manager() -> Any:
    """SGLang's part of this process that talks to the scheduler."""
    from sglang.srt.entrypoints import http_server

    return http_server._global_state.tokenizer_manager


def _is_served(manager: TokenizerManager) -> bool:
    """Whether SGLang's app answers for it: `sglang.Engine` in a program, and a server of gRPC alone, have no app."""
    from sglang.srt.entrypoints import http_server

    state = http_server._global_state
    return state is not None and state.tokenizer_manager is manager


def _service(manager: TokenizerManager, mode: str) -> Introspection:
    """What this engine shows. It looks the manager up by itself, which the registry would otherwise keep alive."""
    if manager not in _services:
        _services[manager] = Introspection(_ask, mode, decode=_decode, images=_image_numbers)
    return _services[manager]


async def _ask(question: str) -> Mapping[str, Any]:
    """Take a question to the scheduler, as SGLang asks it for its state."""
    from sglang.srt.managers.io_struct import GetInternalStateReq

    manager = _manager()
    manager.auto_create_handle_loop()
    # A client that hangs up must not end this half-way: SGLang would take the late answer for the next question's.
    asking = asyncio.ensure_future(manager.get_internal_state_communicator(GetInternalStateReq(rid=question)))
    _asking.add(asking)
    asking.add_done_callback(_asking.discard)
    (answer,) = await asyncio.shield(asking)
    told: Mapping[str, Any] = answer.internal_state[protocol.ANSWER]
    return told


def _decode(ids: list[int]) -> str:
    tokenizer = _manager().tokenizer
    if tokenizer is None:
        return " ".join(map(str, ids))
    # What stands for an image that is no screenshot to the policy lies outside of the vocabulary.
    return str(tokenizer.decode([number for number in ids if 0 <= number < len(tokenizer)]))


def _image_numbers() -> Mapping[str, int] | None:
    processor = _manager().mm_processor
    if processor is None or not processor.mm_preprocess_cache.enabled:
        return None
    return images.report(processor.mm_preprocess_cache.stats())


def note_screenshots(manager: TokenizerManager, obj: Any, tokenized: Any) -> None:
    """Remember the screenshots of a request where the server shows them; an engine without one has nobody to show them.

    Args:
        manager: Of this server.
        obj: The request as it came.
        tokenized: What SGLang made of it: an item for each image, in order.
    """
    if getattr(manager.server_args, "kv_introspection", protocol.OFF) != protocol.CONTENT:
        return
    if not _is_served(manager):
        return
    items = getattr(getattr(tokenized, "mm_inputs", None), "mm_items", None) or ()
    hashes = [protocol.image_key(int(item.hash)) for item in items if item.is_image() and item.hash is not None]
    sources = flat(obj.image_data)
    if hashes and len(hashes) == len(sources):
        _service(manager, protocol.CONTENT).screenshots.note(sources, hashes)
