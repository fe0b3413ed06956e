"""Recorded conversations and requests: read from JSON, checked, and taken apart into turns.

Two forms, told apart by what a file holds:

- *a conversation* (``.json``): a list of OpenAI chat messages, or an object with ``messages``. Each answer of the
  assistant ends a turn, and so does the conversation's end where the user spoke last. Where nobody has answered at all,
  each message of the user is a turn, and the full cache's answers stand in the history.
- *requests* (``.jsonl``): a request body a line, ``{"messages": [...], ...}``, or one with that under ``body`` or
  ``request``, as proxies and batch files have it. Each is a turn; `threads` puts them in order.

Screenshots are ``image_url`` or ``image`` parts: a data URL, or a path beside the file.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote, urlsplit

from PIL import Image

from star_kv_sglang.tools.resize import Size
from star_kv_sglang.tools.rollout.trajectory import TrajectoryFileError, load_trajectories
from star_kv_sglang.tools.tune.errors import RecordingError

CONVERSATIONS: Final = "conversations"
"""Where a rollout's folder keeps them."""

AGO: Final = "screenshots_ago"
"""Key of a user's message that says which screenshot its answer needs: 0 for the newest, where that is known."""

_ROLES: Final = ("system", "developer", "user", "assistant", "tool")
_BODIES: Final = ("body", "request")


@dataclass(frozen=True)
class Picture:
    """A screenshot as it was recorded.

    Attributes:
        sha256: of its bytes; two of the same are the same screenshot.
        size: width and height, pixels.
        media: of its ``data:`` URL.
        path: its file, where it is one; else its ``content`` is held.
    """

    sha256: str
    size: Size
    media: str
    path: Path | None = field(default=None, compare=False)
    content: bytes = field(default=b"", compare=False, repr=False)

    def read(self) -> bytes:
        """Its bytes."""
        return self.content if self.path is None else self.path.read_bytes()

    def data_url(self) -> str:
        """As a server takes it."""
        return f"data:{self.media};base64,{base64.b64encode(self.read()).decode('ascii')}"


@dataclass(frozen=True)
class Said:
    """A message.

    Attributes:
        role: who says it.
        parts: its text and screenshots, in order; None: what the full cache answers at this place.
        other: further keys of the message that a chat template may want, such as ``tool_calls``.
        ago: which screenshot its answer needs, 0 for the newest; None where nobody has said.
    """

    role: str
    parts: tuple[str | Picture, ...] | None
    other: Mapping[str, Any] = field(default_factory=dict)
    ago: int | None = None


@dataclass(frozen=True)
class Turn:
    """What was sent, and which answer is looked at.

    Attributes:
        said: the prompt's messages.
        tools: what the request offers the model, for the chat template.
        scored: whether this turn is compared; one that several threads pass through is so in the first alone.
    """

    said: tuple[Said, ...]
    tools: tuple[Mapping[str, Any], ...] = ()
    scored: bool = True

    @property
    def pictures(self) -> tuple[Picture, ...]:
        """Its screenshots, in order."""
        return tuple(part for one in self.said for part in one.parts or () if isinstance(part, Picture))

    @property
    def ago(self) -> int | None:
        """Which screenshot the answer needs, where the recording says so."""
        return self.said[-1].ago

    @property
    def question(self) -> str:
        """The text of the last message."""
        return " ".join(part for part in self.said[-1].parts or () if isinstance(part, str)).strip()


@dataclass(frozen=True)
class Thread:
    """Turns that follow each other.

    Attributes:
        name: unique among those that are replayed.
        turns: in order.
    """

    name: str
    turns: tuple[Turn, ...]


class Reader:
    """Reads files; a screenshot that several of them name is held once."""

    def __init__(self) -> None:
        self._pictures: dict[str, Picture] = {}

    def conversation(self, path: Path, row: object, place: str) -> tuple[Turn, ...]:
        """The turns of a conversation.

        Raises:
            RecordingError: it is none.
        """
        said = self._messages(path, row, place)
        answered = any(one.role == "assistant" for one in said)
        turns: list[Turn] = []
        shown: list[Said] = []
        for number, one in enumerate(said):
            if one.role == "assistant":
                turns += [Turn(tuple(shown))] if shown and shown[-1].role != "assistant" else []
            shown.append(one)
            is_last = number == len(said) - 1
            if one.role == "user" and (is_last or not answered):
                turns.append(Turn(tuple(shown)))
                if not answered:
                    shown.append(Said("assistant", None))
        if not any(turn.pictures for turn in turns):
            raise RecordingError(f"{path}: {place}: shows no screenshot; there is nothing that a KV policy could prune")
        return tuple(turns)

    def request(self, path: Path, row: object, place: str) -> Turn:
        """The turn of a request's body.

        Raises:
            RecordingError: it is none.
        """
        body = row
        for name in _BODIES:
            if isinstance(body, Mapping) and "messages" not in body and isinstance(body.get(name), Mapping):
                body = body[name]
        if not isinstance(body, Mapping):
            raise RecordingError(f"{path}: {place}: must be a request's body, an object with 'messages'")
        tools = body.get("tools") or ()
        if not isinstance(tools, Sequence) or not all(isinstance(tool, Mapping) for tool in tools):
            raise RecordingError(f"{path}: {place}: 'tools' must be a list of objects")
        return Turn(tuple(self._messages(path, body, place)), tuple(tools))

    def _messages(self, path: Path, row: object, place: str) -> list[Said]:
        messages = row.get("messages") if isinstance(row, Mapping) else row
        if not isinstance(messages, list) or not messages:
            raise RecordingError(
                f"{path}: {place}: holds no chat messages; expected a list of {{'role', 'content'}}, or an object with "
                "it under 'messages'"
            )
        return [self._said(path, one, f"{place}, message {number}") for number, one in enumerate(messages, start=1)]

    def _said(self, path: Path, row: object, place: str) -> Said:
        if not isinstance(row, Mapping) or row.get("role") not in _ROLES:
            raise RecordingError(f"{path}: {place}: must be an object whose 'role' is one of {', '.join(_ROLES)}")
        content = row.get("content")
        if content is None or isinstance(content, str):
            parts: tuple[str | Picture, ...] = (content,) if content else ()
        elif isinstance(content, list):
            parts = tuple(self._part(path, part, f"{place}, part {n}") for n, part in enumerate(content, start=1))
        else:
            raise RecordingError(f"{path}: {place}: 'content' must be a text or a list of parts")
        ago = row.get(AGO)
        if ago is not None and (isinstance(ago, bool) or not isinstance(ago, int) or ago < 0):
            raise RecordingError(f"{path}: {place}: {AGO!r} must be a whole number, 0 for the newest screenshot")
        other = {name: value for name, value in row.items() if name not in ("role", "content", AGO)}
        return Said(str(row["role"]), parts, other, ago)

    def _part(self, path: Path, part: object, place: str) -> str | Picture:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if not isinstance(part, Mapping) or kind not in ("text", "image_url", "image", "input_text", "input_image"):
            raise RecordingError(f"{path}: {place}: is neither text nor an image: {str(part)[:80]}")
        if kind in ("text", "input_text"):
            if not isinstance(part.get("text"), str):
                raise RecordingError(f"{path}: {place}: 'text' must be a text")
            return str(part["text"])
        named = part.get("image_url", part.get("image"))
        url = named.get("url") if isinstance(named, Mapping) else named
        if not isinstance(url, str) or not url:
            raise RecordingError(f"{path}: {place}: names no image; expected a data URL or a path")
        return self._picture(path, url, place)

    def _picture(self, path: Path, url: str, place: str) -> Picture:
        try:
            scheme = urlsplit(url).scheme if not url.startswith("data:") else "data"
        except ValueError as error:
            raise RecordingError(f"{path}: {place}: {url[:80]!r} is no address ({error})") from error
        if scheme in ("http", "https"):
            raise RecordingError(
                f"{path}: {place}: the image is at {url[:80]}, and nothing is downloaded here; put it beside the file "
                "and name its path"
            )
        if scheme == "data":
            return self._keep(_decoded(url, f"{path}: {place}"), None, f"{path}: {place}: the data URL")
        named = Path(unquote(urlsplit(url).path) if scheme == "file" else url)
        file = named if named.is_absolute() else path.parent / named
        try:
            content = file.read_bytes()
        except (OSError, ValueError) as error:
            told = getattr(error, "strerror", None) or error
            raise RecordingError(
                f"{path}: {place}: the image {str(file)[-80:]} cannot be read ({told}); paths count from the file that "
                "names them"
            ) from error
        return self._keep(content, file, f"{path}: {place}: {file}")

    def _keep(self, content: bytes, file: Path | None, what: str) -> Picture:
        digest = hashlib.sha256(content).hexdigest()
        if digest not in self._pictures:
            try:
                with Image.open(io.BytesIO(content)) as image:
                    image.load()
                    size, media = image.size, Image.MIME.get(image.format or "", "image/png")
            except Exception as error:  # whatever a decoder of broken files raises
                raise RecordingError(f"{what} is no image that can be read ({error}); PNG and JPEG can be") from error
            self._pictures[digest] = Picture(digest, size, media, file, b"" if file is not None else content)
        return self._pictures[digest]


def recorded_files(path: Path) -> list[Path]:
    """The files of a folder in the order of their names, all the way down, or the one that is named.

    A rollout's folder, and any with a folder ``conversations`` in it, has them there.

    Raises:
        RecordingError: there are none.
    """
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise RecordingError(f"{path}: does not exist; give a folder with recordings (.json, .jsonl) or one such file")
    inner = path / CONVERSATIONS
    folder = inner if inner.is_dir() else path
    files = sorted(file for file in folder.rglob("*") if file.suffix in (".json", ".jsonl") and file.is_file())
    if not files:
        raise RecordingError(
            f"{folder}: holds no .json and no .jsonl file; expected conversations (OpenAI chat messages) or recorded "
            "requests, one a line"
        )
    return files


def rows_of(path: Path) -> Iterator[tuple[str, object]]:
    """The JSON values of a file with their places: lines of a ``.jsonl``, else the whole.

    Raises:
        RecordingError: it cannot be read, or is no JSON.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecordingError(f"{path}: cannot be read as text ({error})") from error
    parts = text.split("\n") if path.suffix == ".jsonl" else [text]
    for number, part in enumerate(parts, start=1):
        if not part.strip():
            continue
        place = f"line {number}" if path.suffix == ".jsonl" else "the conversation"
        try:
            yield place, json.loads(part)
        except ValueError as error:
            raise RecordingError(f"{path}: {place}: is no JSON ({error})") from error


def is_trajectory_file(path: Path) -> bool:
    """Whether a file is one of `star-kv rollout FILE` and `star-kv eval suite`, labelled questions and all."""
    if path.suffix != ".json":
        return False
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(rows, list) and bool(rows) and isinstance(rows[0], dict) and "turns" in rows[0]


def asked_in_turn(path: Path, reader: Reader) -> list[tuple[str, tuple[Turn, ...]]]:
    """A trajectory file as conversations: the first question of each turn is asked, and no answer is known.

    Raises:
        RecordingError: the file cannot be used.
    """
    try:
        trajectories = load_trajectories(path)
    except TrajectoryFileError as error:
        raise RecordingError(str(error)) from error
    found = []
    for one in trajectories:
        messages = []
        for turn in one.turns:
            url = f"data:image/png;base64,{base64.b64encode(turn.image_png).decode('ascii')}"
            content = [
                {"type": "text", "text": turn.step},
                {"type": "image_url", "image_url": {"url": url}},
                {"type": "text", "text": turn.questions[0].text},
            ]
            messages.append({"role": "user", "content": content, AGO: turn.questions[0].back})
        found.append((f"{path.stem}-{one.id}", reader.conversation(path, messages, f"trajectory {one.id}")))
    return found


def _decoded(url: str, where: str) -> bytes:
    head, comma, payload = url.partition(",")
    if not comma or not head.endswith(";base64"):
        raise RecordingError(f"{where}: the data URL is not of the form data:image/png;base64,...")
    try:
        return base64.b64decode(payload, validate=True)
    except (binascii.Error, ValueError) as error:
        raise RecordingError(f"{where}: the data URL is no base64 ({error})") from error
