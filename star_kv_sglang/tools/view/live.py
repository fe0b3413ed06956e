"""Follows a running server: asks again and again, through its restarts, and hands out what is new."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections import deque
from collections.abc import AsyncIterator, Mapping
from typing import Any, Final

from star_kv_sglang.introspection.protocol import CONTENT, NODE_FIELDS
from star_kv_sglang.introspection.screenshots import kind_of
from star_kv_sglang.tools.view.client import Client, UnreachableError, message_of
from star_kv_sglang.tools.view.errors import ViewError
from star_kv_sglang.tools.view.recording import HEADER, Recorder
from star_kv_sglang.tools.view.snapshot import Differ

MOST_POINTS: Final = 3_600
"""Of the charts' past, for a page that is opened later."""
_MOST_BEHIND: Final = 64
"""Records that a page may be behind before it gets the whole tree anew."""
_BEHIND: Final[dict[str, Any]] = {}
"""Stands for all that a page has missed."""
_RETRY_S: Final = 1.0
_FRAMES_A_TURN: Final = 8
"""Heat maps that a recording asks for between two snapshots."""
_FRAMES = NODE_FIELDS.index("frames")

Answer = tuple[bytes, str]
"""Body and media type of what a page asked for."""


def problem(text: str) -> Answer:
    """Why there is nothing to show in a place of the page: no error of the page, nor of its browser's console."""
    return json.dumps({"problem": text}).encode(), "application/json"


class LiveSource:
    """A server that is watched.

    Args:
        client: Of the server.
        interval_s: Seconds between two snapshots.
        recorder: Gets all records.
        with_frames: The recorder also gets every heat map when it changes, and every screenshot.
    """

    def __init__(
        self, client: Client, *, interval_s: float, recorder: Recorder | None = None, with_frames: bool = False
    ) -> None:
        self._client, self._interval_s, self._recorder, self._with_frames = client, interval_s, recorder, with_frames
        self._differ = Differ()
        self._points: deque[dict[str, Any]] = deque(maxlen=MOST_POINTS)
        self._cuts: deque[Any] = deque(maxlen=512)
        self._status: dict[str, Any] = {"type": "status", "state": "waiting", "text": f"asking {client.url}", "time": 0}
        self._pages: set[asyncio.Queue[dict[str, Any] | None]] = set()
        self._recorded: dict[tuple[int, int], int] = {}
        self._pictures: set[str] = set()
        self._failed: set[tuple[int, int]] = set()
        self._following = "following"

    @property
    def title(self) -> str:
        """What is shown."""
        return self._client.url

    async def first(self) -> str | None:
        """Ask once before there is a page; returns why nobody answers yet, who may answer later.

        Raises:
            ViewError: The server answers, and does not show its tree.
        """
        try:
            self._take(await self._client.snapshot())
        except UnreachableError as error:
            return str(error)
        return None

    async def follow(self) -> None:
        """Ask again and again, until it is cancelled."""
        try:
            while True:
                await self._step()
        finally:
            await self._client.close()
            if self._recorder is not None:
                self._recorder.close()

    async def _step(self) -> None:
        began = time.monotonic()
        try:
            self._take(await self._client.snapshot())
            if self._recorder is not None and self._with_frames:
                await self._record_frames()
        except UnreachableError as error:
            self._tell("lost", f"{error}. Trying again every second; this page goes on by itself.")
            await asyncio.sleep(_RETRY_S)
        except ViewError as error:
            self._tell("refused", str(error))
            await asyncio.sleep(_RETRY_S)
        except (KeyError, TypeError, ValueError, IndexError) as error:
            self._tell("refused", f"{self._client.url} tells its tree in a form that cannot be read ({error!r})")
            await asyncio.sleep(_RETRY_S)
        else:
            await asyncio.sleep(max(0.0, self._interval_s - (time.monotonic() - began)))

    def _take(self, snapshot: Mapping[str, Any]) -> None:
        if self._differ.newest and self._differ.newest["time"] == snapshot["time"]:
            return  # the server gives itself a rest
        restarted = self._differ.newest and self._differ.newest["started"] != snapshot["started"]
        if restarted:
            self._recorded.clear()
            self._pictures.clear()
            self._failed.clear()
            self._cuts.clear()
            self._tell("restarted", "the server was restarted; its tree began anew")
        record = self._differ.record(snapshot)
        self._cuts.extend(record["cuts"])
        self._points.append(
            {key: record[key] for key in ("time", "started", "totals", "images", "policy", "num_nodes")}
        )
        self._tell("following", self._following)
        self._hand_out(record)

    def _tell(self, state: str, text: str) -> None:
        if (self._status["state"], self._status["text"]) != (state, text):
            self._status = {"type": "status", "state": state, "text": text, "time": round(time.time(), 3)}
            self._hand_out(self._status)

    def _hand_out(self, record: dict[str, Any]) -> None:
        self._record(record)
        for page in self._pages:
            if page.qsize() > _MOST_BEHIND:
                # Nobody reads it, as in a tab that sleeps. When somebody does, he gets the state of then.
                while not page.empty():
                    page.get_nowait()
                page.put_nowait(_BEHIND)
            else:
                page.put_nowait(record)

    async def _record_frames(self) -> None:
        """Heat maps that are new or have changed, and screenshots that are new, some at a time.

        What fails is asked for again behind all others.
        """
        has_pictures = self._differ.newest["shows"] == CONTENT
        missing = [
            ((ident, start), image, live)
            for ident, row in self._differ.rows.items()
            for image, start, *_, live in row[_FRAMES]
            if self._recorded.get((ident, start)) != live or (has_pictures and image not in self._pictures)
        ]
        missing.sort(key=lambda one: one[0] in self._failed)
        for place, image, live in missing[:_FRAMES_A_TURN]:
            self._failed.add(place)
            if self._recorded.get(place) != live:
                if not await self._has("frame", {"node": str(place[0]), "start": str(place[1])}):
                    continue
                self._recorded[place] = live
            if has_pictures and image not in self._pictures:
                if not await self._has("screenshot", {"image": image}):
                    continue
                self._pictures.add(image)
            self._failed.discard(place)

    async def _has(self, kind: str, query: Mapping[str, str]) -> bool:
        """Whether the server told something, which then is recorded.

        Raises:
            UnreachableError: Nobody answers.
        """
        try:
            await self._told(kind, query)
        except UnreachableError:
            raise
        except ViewError:
            return False
        return True

    def end(self) -> None:
        """Nothing more is shown."""
        for page in self._pages:
            page.put_nowait(None)

    async def records(self) -> AsyncIterator[dict[str, Any]]:
        """What a page gets: the state now, then everything that is new, without end."""
        page: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
        self._pages.add(page)
        try:
            yield {**HEADER, "source": self.title, "live": True}
            for record in self._now():
                yield record
            while (new := await page.get()) is not None:
                for record in self._now() if new is _BEHIND else [new]:
                    yield record
        finally:
            self._pages.discard(page)

    def _now(self) -> list[dict[str, Any]]:
        past = {"type": "past", "points": list(self._points)}
        trees = [{**self._differ.whole(), "cuts": list(self._cuts)}] if self._differ.newest else []
        return [past, *trees, self._status]

    async def detail(self, kind: str, query: Mapping[str, str]) -> Answer:
        """What a page asks for: a heat map, a prompt or a screenshot."""
        try:
            return await self._told(kind, query)
        except ViewError as error:
            return problem(str(error))

    async def _told(self, kind: str, query: Mapping[str, str]) -> Answer:
        """What the server tells of one thing; it is recorded.

        Raises:
            ViewError: It tells nothing, and why.
        """
        answer = await self._client.get(f"/star_kv/{kind}", query)
        if answer.status_code != 200:
            raise ViewError(message_of(answer))
        if kind == "screenshot":
            media = kind_of(answer.content)
            if media is None:
                raise ViewError("the server sent no picture")
            self._record({"type": kind, **query, "kind": media, "data": base64.b64encode(answer.content).decode()})
            return answer.content, media
        self._record({"type": kind, **{key: int(value) for key, value in query.items()}, **answer.json()})
        return answer.content, "application/json"

    def _record(self, record: dict[str, Any]) -> None:
        if self._recorder is None:
            return
        try:
            self._recorder.write(record)
        except OSError as error:
            self._recorder = None
            self._following = f"following, but the recording has ended: {error.strerror or error}"
