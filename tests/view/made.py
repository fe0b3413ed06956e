"""Trees, recordings and servers that are made up: what a page shows of them is known."""

from __future__ import annotations

import base64
import io
import json
import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import uvicorn
from PIL import Image
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from star_kv_sglang import __version__
from star_kv_sglang.introspection.protocol import NODE_FIELDS, PENDING, SHARED, VERSION
from star_kv_sglang.tools.view.recording import HEADER

ROWS, COLS, NUM_LAYERS = 9, 14, 6
SCREEN = ROWS * COLS
TEXT = 20
START = 1_700_000_000.0


def tree(num_branches: int, num_turns: int, *, kept: int = 25) -> list[list[Any]]:
    """Nodes of branches that share their first screenshot; ``kept`` tokens stay of each later one but the last."""
    first = TEXT + SCREEN
    nodes: list[list[Any]] = [[1, 0, 0, first, first, SHARED, 0, num_branches, 1.0, [frame("first", TEXT, SCREEN)]]]
    ident = 1
    for branch in range(num_branches):
        parent, at = 1, first
        for number in range(num_turns):
            ident += 1
            is_last = number == num_turns - 1
            live = SCREEN if is_last else kept
            frames = [frame(f"b{branch}t{number}", at + TEXT, live)]
            flags = PENDING if is_last else 0
            nodes.append([ident, parent, at, first, TEXT + live, flags, 0, 1, 1.0, frames])
            parent, at = ident, at + first
    return nodes


def frame(image: str, start: int, live: int) -> list[Any]:
    """A whole screenshot in one node."""
    return [image, start, ROWS, COLS, start, start + SCREEN, live]


def snapshot(nodes: list[list[Any]], *, at: float = 0.0, **changes: Any) -> dict[str, Any]:
    """What a server answers for its tree, ``at`` seconds after its start."""
    live = sum(node[4] for node in nodes)
    shared = sum(node[4] for node in nodes if node[5] & SHARED)
    totals = {
        "pool_tokens": 200_000, "used_pool_tokens": live, "live_tokens": live, "shared_tokens": shared,
        "private_tokens": live - shared, "num_prompts": int(4 * at), "num_prompt_tokens": int(4_000 * at) + 1,
        "num_cached_prompt_tokens": int(3_000 * at), "num_pruned_tokens": int(900 * at), "num_shrunk_tokens": 0,
    }  # fmt: skip
    return {
        "protocol": VERSION, "star_kv": __version__, "shows": "content", "started": START, "time": START + at,
        "policy": {"name": "star", "budget": 0.2, "token_budget": None}, "totals": totals,
        "images": {"cache_hits": int(9 * at), "cache_misses": 4, "cache_bytes": 2**20, "references_hits": 0},
        "node_fields": list(NODE_FIELDS), "nodes": nodes, "num_nodes": len(nodes), "left_out": 0, "is_torn": False,
        "cuts": [], "scheduler": {"pieces": 1, "spent_us": 100, "longest_us": 100}, **changes,
    }  # fmt: skip


def cut(number: int, at: float = 0.0, reason: str = "prompt", image: str | None = "b0t0") -> list[Any]:
    """One cut of a snapshot."""
    return [number, START + at, reason, 2, image, None if image is None else 166, 101, 25]


def heat(seed: int = 0) -> dict[str, Any]:
    """What each layer keeps of a screenshot: a fifth, at random."""
    bits = np.random.default_rng(seed).random((NUM_LAYERS, SCREEN)) < 0.2
    kept = base64.b64encode(np.packbits(bits, axis=1).tobytes()).decode()
    return {"rows": ROWS, "cols": COLS, "units": NUM_LAYERS, "units_per_layer": 1, "kept": kept}


def png(seed: int = 0) -> bytes:
    """A screenshot."""
    pixels = np.random.default_rng(seed).integers(0, 255, (ROWS, COLS, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).resize((448, 288), Image.Resampling.NEAREST).save(file, "PNG")
    return file.getvalue()


def as_record(shown: dict[str, Any], nodes: list[Any], *, full: bool, gone: tuple[int, ...] = ()) -> dict[str, Any]:
    """A record of a recording."""
    told = {key: value for key, value in shown.items() if key not in ("nodes", "node_fields")}
    return {"type": "tree", **told, "full": full, "nodes": nodes, "gone": list(gone)}


def write(path: Path, records: list[dict[str, Any]], **header: Any) -> Path:
    """A recording."""
    path.write_text("".join(json.dumps(one) + "\n" for one in ({**HEADER, **header}, *records)), encoding="utf-8")
    return path


def growing(path: Path, num_branches: int, num_turns: int, num_updates: int = 0) -> Path:
    """A recording in which a tenth of all nodes changes with every record, and some leaves go and come back."""
    nodes = tree(num_branches, num_turns)
    records = [as_record(snapshot(nodes), nodes, full=True)]
    rng = random.Random(1)
    for number in range(1, num_updates + 1):
        changed = [[*node[:6], node[6] + number, *node[7:]] for node in rng.sample(nodes, len(nodes) // 10)]
        shown = snapshot(nodes, at=float(number), cuts=[cut(number, float(number))])
        records.append(as_record(shown, changed, full=False))
    return write(path, records)


class FakeServer:
    """Answers as a server with ``--kv-introspection`` does; its attributes may be set while it runs.

    Attributes:
        shown: Answer for the tree; None where there is no such endpoint.
        info: Answer of ``/server_info``.
        status: Of all answers for the tree.
        key: That it asks for.
        text: Runs of the prompt.
        kept: Seed of all heat maps.
        failing: Kinds of what is asked one by one that have no answer.
    """

    def __init__(self, shown: dict[str, Any] | None = None) -> None:
        self.shown = shown
        self.info: Any = {"kv_policy": "star", "kv_introspection": "off"}
        self.status = 200
        self.key: str | None = None
        self.text: list[str | None] = ["<|im_start|>user", None]
        self.kept = 0
        self.failing: set[str] = set()
        self.asked: list[str] = []
        self._at = 0.0

    async def _tree(self, request: Request) -> Response:
        self.asked.append("tree")
        if self.key is not None and request.headers.get("authorization") != f"Bearer {self.key}":
            return JSONResponse({"error": "Unauthorized"}, 401)
        if self.shown is None:
            return JSONResponse({"detail": "Not Found"}, 404)
        self._at += 0.25
        moving = {"time": self.shown["time"] + self._at} if "time" in self.shown else {}
        return JSONResponse({**self.shown, **moving}, self.status)

    async def _info(self, request: Request) -> Response:
        del request
        return JSONResponse(self.info, 404 if self.info is None else 200)

    async def _detail(self, request: Request) -> Response:
        kind = request.path_params["kind"]
        self.asked.append(kind)
        if kind in self.failing:
            return JSONResponse({"error": {"message": "busy"}}, 503)
        if kind == "screenshot":
            return Response(png(), media_type="image/png")
        return JSONResponse(heat(self.kept) if kind == "frame" else {"runs": self.text, "is_cut": False})

    @contextmanager
    def running(self, port: int = 0) -> Iterator[str]:
        """Its address, while it runs."""
        app = Starlette(
            routes=[
                Route("/star_kv/tree", self._tree),
                Route("/server_info", self._info),
                Route("/star_kv/{kind:str}", self._detail),
            ]
        )
        with running(app, port) as url:
            yield url


@contextmanager
def running(app: Any, port: int = 0) -> Iterator[str]:
    """An app in a thread of this process."""
    config = uvicorn.Config(app, host="127.0.0.1", port=port, log_level="error", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 20
    while not server.started:
        assert time.monotonic() < deadline and thread.is_alive(), "the app did not start"
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(timeout=10)
        assert not thread.is_alive()
