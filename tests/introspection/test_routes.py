"""The routes on SGLang's own app: off means unknown, and screenshots are remembered only where they are shown."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from star_kv_sglang.introspection import protocol
from star_kv_sglang.patches import introspection_routes as routes

PNG = b"\x89PNG\r\n\x1a\n" + bytes(100)


class Manager:
    """The part of SGLang's that is asked, of a server in some mode."""

    mm_processor = None
    tokenizer = None

    def __init__(self, mode: str) -> None:
        self.server_args = SimpleNamespace(kv_introspection=mode)
        self.asked: list[Any] = []

    def auto_create_handle_loop(self) -> None:
        """SGLang waits for answers from here on."""

    async def get_internal_state_communicator(self, request: Any) -> list[Any]:
        self.asked.append(protocol.asked(request.rid))
        told = {
            "policy": {}, "totals": {}, "num_nodes": 1, "cuts": [], "is_over": True, "is_torn": False, "spent_us": 9,
            "nodes": [[1, 0, 0, 6, 6, 0, 0, 1, 0.0, [["beef", 0, 2, 3, 0, 6, 6]]]],
        }  # fmt: skip
        return [SimpleNamespace(internal_state={protocol.ANSWER: told})]


@pytest.fixture
def http_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    from sglang.srt.entrypoints import http_server

    before = list(http_server.app.router.routes)
    monkeypatch.setattr(http_server, "_global_state", SimpleNamespace(tokenizer_manager=None))
    yield http_server
    http_server.app.router.routes[:] = before


def get(http_server: Any, manager: Manager, path: str, **query: str) -> Any:
    http_server._global_state.tokenizer_manager = manager
    request = SimpleNamespace(url=SimpleNamespace(path=f"/star_kv/{path}"), query_params=query)
    return asyncio.run(routes._handle(request))


def test_they_are_added_once_and_ask_for_the_keys_of_administration(http_server: Any) -> None:
    from sglang.srt.utils.auth import AuthLevel

    routes.add_routes()
    routes.add_routes()
    ours = [route for route in http_server.app.router.routes if getattr(route, "path", "").startswith("/star_kv/")]
    assert sorted(route.path for route in ours) == sorted(f"/star_kv/{path}" for path in routes.PATHS)
    assert {route.endpoint._auth_level for route in ours} == {AuthLevel.ADMIN_OPTIONAL}


@pytest.mark.parametrize("path", routes.PATHS)
def test_a_server_that_shows_nothing_knows_no_such_route_and_asks_nobody(http_server: Any, path: str) -> None:
    """The routes may be there from an engine that was in this process before."""
    manager = Manager(protocol.OFF)
    assert get(http_server, manager, path, node="1", start="0", image="x").status_code == 404
    assert manager.asked == []


def test_a_question_reaches_the_scheduler_and_its_answer_the_client(http_server: Any) -> None:
    manager = Manager(protocol.TREE)
    answer = get(http_server, manager, "tree")
    assert answer.status_code == 200 and answer.headers["cache-control"] == "no-store"
    assert manager.asked == [{"ask": "walk", "cuts_after": 0}]


def test_a_client_that_hangs_up_leaves_no_answer_for_the_next_one(http_server: Any) -> None:
    manager, answered = Manager(protocol.TREE), []
    at_once = manager.get_internal_state_communicator

    async def later(request: Any) -> list[Any]:
        await asyncio.sleep(0.05)
        answered.append(request)
        return await at_once(request)

    async def hang_up() -> None:
        request: Any = SimpleNamespace(url=SimpleNamespace(path="/star_kv/tree"), query_params={})
        task = asyncio.create_task(routes._handle(request))
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.sleep(0.2)

    manager.get_internal_state_communicator = later  # type: ignore[method-assign]
    http_server._global_state.tokenizer_manager = manager
    asyncio.run(hang_up())
    assert len(answered) == 1 and not routes._asking


def request_with(image: object) -> tuple[Any, Any]:
    """A request as it came, and what SGLang made of it."""
    item = SimpleNamespace(hash=0xBEEF, is_image=lambda: True)
    return SimpleNamespace(image_data=[image]), SimpleNamespace(mm_inputs=SimpleNamespace(mm_items=[item]))


@pytest.mark.parametrize(("mode", "status"), [(protocol.OFF, 404), (protocol.TREE, 403), (protocol.CONTENT, 200)])
def test_screenshots_are_remembered_only_where_they_are_shown(http_server: Any, mode: str, status: int) -> None:
    manager: Any = Manager(mode)
    http_server._global_state.tokenizer_manager = manager
    routes.note_screenshots(manager, *request_with(PNG))
    assert (manager in routes._services) == (mode == protocol.CONTENT)
    get(http_server, manager, "tree")
    name = routes._services[manager].name_of("beef") if mode != protocol.OFF else "x"
    answer = get(http_server, manager, "screenshot", image=name)
    assert answer.status_code == status and (answer.body == PNG) == (status == 200)
    assert status != 200 or answer.headers["content-security-policy"] == "default-src 'none'"


@pytest.mark.parametrize("is_another_served", [True, False])
def test_an_engine_that_no_app_serves_remembers_no_screenshots(
    http_server: Any, monkeypatch: pytest.MonkeyPatch, is_another_served: bool
) -> None:
    manager: Any = Manager(protocol.CONTENT)
    if is_another_served:
        http_server._global_state.tokenizer_manager = Manager(protocol.CONTENT)
    else:
        monkeypatch.setattr(http_server, "_global_state", None)
    routes.note_screenshots(manager, *request_with(PNG))
    assert manager not in routes._services


def test_what_has_no_image_for_each_item_is_left_out(http_server: Any) -> None:
    manager: Any = Manager(protocol.CONTENT)
    http_server._global_state.tokenizer_manager = manager
    routes.note_screenshots(manager, SimpleNamespace(image_data=None), request_with(PNG)[1])
    routes.note_screenshots(manager, SimpleNamespace(image_data=None), SimpleNamespace(mm_inputs=None))
    assert manager not in routes._services
