"""Answers HTTP requests about the tree: puts the scheduler's pieces together, and does not ask it too often."""

from __future__ import annotations

import asyncio
import hashlib
import re
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from star_kv_sglang import __version__
from star_kv_sglang.introspection import protocol
from star_kv_sglang.introspection.screenshots import Screenshots, kind_of

Ask = Callable[[str], Awaitable[Mapping[str, Any]]]
"""Takes a question (`protocol.question`) to the scheduler and brings its answer."""

MOST_NODES: Final = 10_000
"""Of a snapshot: one is a megabyte of JSON. What is left out lies deepest, and is counted."""
LEAST_S: Final = 0.25
"""Between two snapshots, for all who look together."""
SHARE: Final = 0.05
"""Most of the scheduler's time that snapshots may take."""
_MOST_NAMES: Final = 65_536
"""Of screenshots. Each follows from its hash: one that was forgotten comes back with the next snapshot."""
MOST_WAITING: Final = 32
"""Requests that wait for the scheduler; it may be computing for seconds."""


class SchedulerFailed(Exception):
    """A question failed in the scheduler."""


@dataclass(frozen=True)
class Reply:
    """What a client is answered.

    Attributes:
        body: JSON, or the bytes of a picture.
        status: of HTTP.
        kind: media type of bytes.
    """

    body: Mapping[str, Any] | bytes
    status: int = 200
    kind: str = "application/json"


def _refusal(status: int, message: str) -> Reply:
    return Reply({"error": {"message": message, "type": "star_kv_introspection"}}, status)


_NO_CONTENT = (
    "this server shows no prompts and no screenshots; whoever runs it decides: --kv-introspection content shows them"
)
_GONE = "that part of the tree is gone: it was dropped, or the cache was emptied"


class Introspection:
    """One for each server.

    Args:
        ask: The way to the scheduler.
        mode: Of ``--kv-introspection``.
        decode: Text of token ids.
        images: Numbers of the image cache, where there is one.
    """

    def __init__(
        self,
        ask: Ask,
        mode: str,
        *,
        decode: Callable[[list[int]], str],
        images: Callable[[], Mapping[str, int] | None],
    ) -> None:
        self._carry, self._decode, self._images = ask, decode, images
        self.mode = mode
        self.screenshots = Screenshots()
        self._started = round(time.time(), 3)
        self._secret = secrets.token_bytes(16)
        self._names: dict[str, str] = {}
        self._image_of: dict[str, str] = {}
        self._lock = asyncio.Lock()
        self._num_waiting = 0
        self._snapshot: dict[str, Any] = {}
        self._cuts: list[Any] = []
        self._next_at = 0.0

    def name_of(self, image: str) -> str:
        """What a screenshot is called to who looks: not by its hash, from which one could tell what it shows."""
        if image not in self._names:
            if len(self._names) >= _MOST_NAMES:
                self._names.clear()
                self._image_of.clear()
            name = hashlib.blake2b(image.encode(), key=self._secret, digest_size=6).hexdigest()
            self._names[image], self._image_of[name] = name, image
        return self._names[image]

    async def reply(self, path: str, query: Mapping[str, str]) -> Reply:
        """The answer to one request.

        Args:
            path: What follows ``/star_kv/``.
            query: Parameters of the URL.
        """
        if path == "screenshot":
            return self._screenshot(query.get("image", ""))
        if self._num_waiting >= MOST_WAITING:
            return _refusal(503, f"{MOST_WAITING} others wait for the scheduler; it is busy")
        self._num_waiting += 1
        try:
            async with self._lock:
                if path == "tree":
                    return await self._tree()
                return await self._detail(path, query)
        except SchedulerFailed as error:
            return _refusal(500, f"the scheduler could not answer, and goes on: {error}; its log says more")
        finally:
            self._num_waiting -= 1

    async def _ask(self, **fields: Any) -> dict[str, Any]:
        told = dict(await self._carry(protocol.question(**fields)))
        if "failed" in told:
            raise SchedulerFailed(told["failed"])
        return told

    async def _tree(self) -> Reply:
        if time.monotonic() >= self._next_at:
            self._snapshot, spent_s = await self._walk()
            self._next_at = time.monotonic() + max(LEAST_S, spent_s / SHARE)
        return Reply(self._snapshot)

    async def _walk(self) -> tuple[dict[str, Any], float]:
        """A snapshot, and the seconds that the scheduler spent on it."""
        seen = self._cuts[-1][0] if self._cuts else 0
        first = await self._ask(ask="walk", cuts_after=seen)
        pieces = [first]
        nodes = list(first["nodes"])
        while not pieces[-1].get("is_over", True) and len(nodes) < MOST_NODES:
            pieces.append(await self._ask(ask="piece"))
            nodes += pieces[-1].get("nodes", ())
        nodes = nodes[:MOST_NODES]
        for node in nodes:
            for frame in node[-1]:
                frame[0] = self.name_of(frame[0])
        for cut in first["cuts"]:
            name = None if cut[4] is None else self.name_of(protocol.image_key(cut[4]))
            self._cuts.append([*cut[:4], name, *cut[5:]])
        del self._cuts[:-512]
        spent = [piece["spent_us"] for piece in pieces]
        snapshot = {
            "protocol": protocol.VERSION,
            "star_kv": __version__,
            "shows": self.mode,
            "started": self._started,
            "time": round(time.time(), 3),
            "policy": first["policy"],
            "totals": first["totals"],
            "images": self._images(),
            "node_fields": protocol.NODE_FIELDS,
            "nodes": nodes,
            "num_nodes": first["num_nodes"],
            "left_out": max(0, first["num_nodes"] - len(nodes)) if len(nodes) == MOST_NODES else 0,
            "is_torn": bool(pieces[-1].get("is_torn", True)),
            "cuts": list(self._cuts),
            "scheduler": {"pieces": len(spent), "spent_us": sum(spent), "longest_us": max(spent)},
        }
        return snapshot, sum(spent) / 1e6

    async def _detail(self, path: str, query: Mapping[str, str]) -> Reply:
        numbers = {name: query.get(name, "") for name in (("node", "start") if path == "frame" else ("node",))}
        wrong = [name for name, word in numbers.items() if not re.fullmatch(r"\d{1,15}", word)]
        if wrong:
            return _refusal(400, f"{', '.join(wrong)} must be a whole number, as /star_kv/tree gives it")
        if path == "text" and self.mode != protocol.CONTENT:
            return _refusal(403, _NO_CONTENT)
        told = await self._ask(ask=path, **{name: int(word) for name, word in numbers.items()})
        if "gone" in told:
            return _refusal(404, _GONE)
        if path == "text":
            told["runs"] = [None if ids is None else self._decode(ids) for ids in told["runs"]]
        return Reply(told)

    def _screenshot(self, name: str) -> Reply:
        if self.mode != protocol.CONTENT:
            return _refusal(403, _NO_CONTENT)
        image = self._image_of.get(name)
        picture = None if image is None else self.screenshots.get(image)
        if picture is None:
            return _refusal(
                404, "that screenshot is not held: it came by a URL or by its digest, or others have taken its place"
            )
        return Reply(picture, kind=kind_of(picture) or "")
