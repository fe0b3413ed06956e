"""Shows a recording as if its server were there."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

from star_kv_sglang.introspection.screenshots import kind_of
from star_kv_sglang.tools.view.live import Answer, problem
from star_kv_sglang.tools.view.recording import HEADER, Recording


class RecordedSource:
    """A recorded run.

    Args:
        path: Its file.

    Raises:
        ViewError: It cannot be shown.
    """

    def __init__(self, path: Path) -> None:
        self._recording = Recording(path)
        self.title = path.name
        self.problem = self._recording.problem

    async def follow(self) -> None:
        """Nothing happens any more."""

    def end(self) -> None:
        """Its records end by themselves."""

    async def records(self) -> AsyncIterator[dict[str, Any]]:
        """All of it, then its end."""
        yield {**HEADER, "source": self.title, "live": False}
        for record in self._recording.records:
            yield record
        yield {"type": "end", "text": self.problem}

    async def detail(self, kind: str, query: Mapping[str, str]) -> Answer:
        """What was recorded of a heat map, a prompt or a screenshot."""
        if kind == "screenshot":
            picture = self._recording.picture(query["image"])
            media = None if picture is None else kind_of(picture)
            if picture is None or media is None:
                return problem("this screenshot was not recorded")
            return picture, media
        found = self._recording.detail(kind, query, _number(query.get("time")))
        if found is None:
            return problem("nobody looked at this while it was recorded")
        return json.dumps(found).encode(), "application/json"


def _number(word: str | None) -> float:
    try:
        return float(word or "inf")
    except ValueError:
        return float("inf")
