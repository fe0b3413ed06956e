"""Recorded runs: a file with one JSON object a line, the first of which says what it is."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from star_kv_sglang import __version__
from star_kv_sglang.introspection.protocol import NODE_FIELDS
from star_kv_sglang.tools.view.errors import ViewError

FORMAT: Final = "star-kv recording"
VERSION: Final = 1
_TYPES: Final = ("tree", "status", "frame", "text", "screenshot")
DETAILS: Final = ("frame", "text", "screenshot")
"""Records of what somebody looked at; a page asks for them one by one."""

HEADER: Final = {
    "type": "header", "format": FORMAT, "version": VERSION, "star_kv": __version__, "node_fields": list(NODE_FIELDS),
}  # fmt: skip


class Recorder:
    """Writes a recording, each record at once: what was written before a crash can be shown.

    Args:
        path: A new file.

    Raises:
        ViewError: It is there already, or cannot be written.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._file = path.open("x", encoding="utf-8")
        except FileExistsError:
            raise ViewError(f"--record {path}: this file is there already; give a new name") from None
        except OSError as error:
            raise ViewError(f"--record {path}: cannot be written ({error.strerror or error})") from error
        self.write(HEADER)

    def write(self, record: Mapping[str, Any]) -> None:
        """Append a record."""
        self._file.write(json.dumps(record, separators=(",", ":")) + "\n")
        self._file.flush()

    def close(self) -> None:
        """The recording is complete."""
        self._file.close()


class Recording:
    """A recording that was read.

    Args:
        path: Its file.

    Attributes:
        records: Trees and what happened to the server, in order.
        problem: What is wrong with the end of the file, where something is; what lies before is shown.

    Raises:
        ViewError: The file cannot be read, is no recording, is of another version, or has nothing to show.
    """

    def __init__(self, path: Path) -> None:
        self.records: list[dict[str, Any]] = []
        self.problem: str | None = None
        self._details: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
        self._time = 0.0
        self._starts: list[tuple[float, Any]] = []
        try:
            with path.open("rb") as file:
                lines = iter(file)
                _check_header(path, next(lines, b""))
                self._read(path, lines)
        except OSError as error:
            raise ViewError(f"{path}: cannot be read ({error.strerror or error})") from error
        if not any(record["type"] == "tree" for record in self.records):
            raise ViewError(f"{path}: this recording ends before the first tree; record again, for some seconds")

    def _read(self, path: Path, lines: Iterator[bytes]) -> None:
        for number, line in enumerate(lines, start=2):
            try:
                record = json.loads(line)
                kind = record["type"]
                if kind not in _TYPES or not line.endswith(b"\n"):
                    raise ValueError(kind)
                self._take(record)
            except (ValueError, TypeError, KeyError):
                # Nothing behind it is shown: trees say what is new since the one before.
                self.problem = f"{path.name} is cut off or damaged in line {number:,}; what lies before it is shown"
                return

    def _take(self, record: dict[str, Any]) -> None:
        if record["type"] == "tree":
            for name in ("nodes", "gone", "cuts", "totals", "policy", "time"):
                record[name]
            self._time = record["time"]
            started = record.get("started")
            if not self._starts or self._starts[-1][1] != started:
                self._starts.append((self._time, started))
        if record["type"] in DETAILS:
            key = self._key(record["type"], record, self._time)
            self._details.setdefault(key, []).append({**record, "at": self._time})
        else:
            self.records.append(record)

    def detail(self, kind: str, query: Mapping[str, str], time: float) -> dict[str, Any] | None:
        """The newest record of something that somebody looked at before a time; the first one if none is so old.

        It is of the start of the server at that time: nodes are numbered anew with each.
        """
        found = self._details.get(self._key(kind, query, time), [])
        return next((record for record in reversed(found) if record["at"] <= time), found[0] if found else None)

    def picture(self, image: str) -> bytes | None:
        """Bytes of a screenshot; None where it was not recorded."""
        found = self.detail("screenshot", {"image": image}, 0.0)
        try:
            return None if found is None else base64.b64decode(found["data"], validate=True)
        except (KeyError, TypeError, binascii.Error, ValueError):
            return None

    def _key(self, kind: str, of: Mapping[str, Any], time: float) -> tuple[Any, ...]:
        if kind == "screenshot":
            return kind, str(of["image"])  # another name with each start
        first = self._starts[0][1] if self._starts else None
        started = next((known for at, known in reversed(self._starts) if at <= time), first)
        return (kind, started, *(str(of[name]) for name in (("node", "start") if kind == "frame" else ("node",))))


def _check_header(path: Path, line: bytes) -> None:
    try:
        header = json.loads(line)
        is_ours = header["format"] == FORMAT
    except (ValueError, TypeError, KeyError):
        is_ours = False
    if not is_ours:
        raise ViewError(f"{path}: is no recording of `star-kv view --live URL --record FILE`")
    if header.get("version") != VERSION or header.get("node_fields") != list(NODE_FIELDS):
        raise ViewError(
            f"{path}: was recorded by star-kv {header.get('star_kv', 'of an unknown version')} in version "
            f"{header.get('version')} of the format; this star-kv reads version {VERSION}"
        )
