"""A rollout's folder: what is run (``rollout.json``), a trace for each branch, the screenshots, the conversations of
branches that have ended, and the faults.

Only one rollout writes to a folder. One that was killed goes on where it stopped.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, TextIO

from star_kv_sglang.tools.chat import Message
from star_kv_sglang.tools.folder_lock import FolderInUseError, locked
from star_kv_sglang.tools.image_references import image_urls, with_image_urls
from star_kv_sglang.tools.rollout.errors import RolloutError
from star_kv_sglang.tools.rollout.trace import TRACE_FORMAT, Branch, Trace, TurnRow

SETTINGS_FILE: Final = "rollout.json"


class RolloutFolder:
    """Writes a rollout; a context manager.

    Args:
        path: Made when it does not exist.
        settings: What is run: a folder that holds something else is refused.

    Raises:
        RolloutError: Another rollout is writing there now, or the folder holds another rollout or another format.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        self.path = path
        path.mkdir(parents=True, exist_ok=True)
        self._lock = _locked(path)
        try:
            self._take_over({"format": TRACE_FORMAT, **json.loads(json.dumps(settings))})
        except BaseException:
            self._lock.close()
            raise
        (path / "screens").mkdir(exist_ok=True)

    def __enter__(self) -> RolloutFolder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # The lock goes with the file.
        self._lock.close()

    def trace(self, branch: Branch, rows: Sequence[TurnRow] = ()) -> Trace:
        """The trace of a branch, new ones with these turns of its parent."""
        return Trace(trace_path(self.path, branch), branch, rows)

    def keep_screen(self, png: bytes) -> str:
        """Write a screenshot, once, and return its SHA-256."""
        digest = hashlib.sha256(png).hexdigest()
        file = self.path / "screens" / f"{digest}.png"
        if not file.exists():
            fresh = file.with_suffix(".new")
            fresh.write_bytes(png)
            os.replace(fresh, file)
        return digest

    def keep_conversation(self, branch: Branch, messages: Sequence[Message]) -> None:
        """Write what a branch was sent and has said, as OpenAI chat messages that name the screenshots' files."""
        file = self.path / "conversations" / branch.task / f"{branch.name}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        up = os.path.relpath(self.path / "screens", file.parent)
        urls = [f"{up}/{_sha256(url)}.png" for url in image_urls(messages)]
        fresh = file.with_suffix(".new")
        text = json.dumps({"messages": with_image_urls(messages, urls)}, indent=1, ensure_ascii=False)
        fresh.write_text(f"{text}\n", encoding="utf-8")
        os.replace(fresh, file)

    def add_fault(self, branch: Branch, text: str) -> None:
        """Append what went wrong to ``faults.jsonl``; it is no part of a trace."""
        row = {"time": time.strftime("%Y-%m-%dT%H:%M:%S"), "task": branch.task, "branch": branch.name, "fault": text}
        with (self.path / "faults.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")

    def _take_over(self, settings: Mapping[str, Any]) -> None:
        file = self.path / SETTINGS_FILE
        if not file.exists():
            fresh = file.with_suffix(".new")
            fresh.write_text(json.dumps(settings, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
            os.replace(fresh, file)
            return
        try:
            before = dict(json.loads(file.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise RolloutError(f"{file} is damaged ({error}); give another --out") from error
        if before.get("format") != TRACE_FORMAT:
            raise RolloutError(
                f"{file} is of the format {before.get('format')!r}, and this version writes {TRACE_FORMAT!r}; give "
                "another --out, or use the version that wrote it"
            )
        names = sorted(name for name in {*before, *settings} if before.get(name) != settings.get(name))
        if names:
            lines = "; ".join(f"{name}: {before.get(name)!r} there, {settings.get(name)!r} now" for name in names)
            raise RolloutError(f"{self.path} holds another rollout ({lines}); give another --out, or the same settings")


def _sha256(data_url: str) -> str:
    return hashlib.sha256(base64.b64decode(data_url.partition(",")[2])).hexdigest()


def trace_path(folder: Path, branch: Branch) -> Path:
    """Where a branch's trace lies."""
    return folder / "traces" / branch.task / f"{branch.name}.jsonl"


def _locked(folder: Path) -> TextIO:
    try:
        return locked(folder, "rollout.lock", what="rollout")
    except FolderInUseError as error:
        raise RolloutError(str(error)) from None
