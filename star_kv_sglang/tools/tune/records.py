"""The folder of a run: what is asked, a line for each replayed turn of each cell, and what was kept where answers
changed.

::

    tune.json                   model, recordings, how they are replayed
    turns/full.jsonl            {"thread": "buy-a-ticket", "turn": 3, "text": ..., "tokens": [[id, logprob, top]], ...}
    turns/star-20.jsonl         {"thread": "buy-a-ticket", "turn": 3, "same": true, "kl": 0.002, ...}
    kept/star-20/007-003.npz    share of the layers that keep each token, by screenshot
    servers/star.log            a server's output
    advice.json, tune.html      what follows
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Final, TextIO, TypeVar

from star_kv_sglang.tools.eval.store import read_lines
from star_kv_sglang.tools.folder_lock import FolderInUseError, locked
from star_kv_sglang.tools.tune.asking import Token
from star_kv_sglang.tools.tune.errors import TuneError

SETTINGS_FILE: Final = "tune.json"
LOCK_FILE: Final = "tune.lock"
TURNS: Final = "turns"
KEPT: Final = "kept"
SERVERS: Final = "servers"
FULL: Final = "full"
AGAIN: Final = "full-again"

_R = TypeVar("_R", "FullTurn", "CellTurn")


@dataclass(frozen=True)
class FullTurn:
    """The full cache's answer to a turn: the reference.

    Attributes:
        thread, turn: which.
        text: its words.
        tokens: ``[id, log-probability, {id: log-probability of the likeliest}]`` of each token.
        prompt: tokens of the prompt.
        cut_off: it reached the token limit.
    """

    thread: str
    turn: int
    text: str
    tokens: Sequence[Sequence[Any]]
    prompt: int
    cut_off: bool = False

    @property
    def heard(self) -> tuple[Token, ...]:
        """Its tokens. JSON has made texts of the ids."""
        return tuple(
            Token(int(token), float(logprob), {int(other): float(p) for other, p in top.items()})
            for token, logprob, top in self.tokens
        )


@dataclass(frozen=True)
class CellTurn:
    """A turn under a policy and a budget, against the full cache.

    Attributes:
        thread, turn: which.
        scored: it counts.
        screenshots: in its prompt.
        ago: which screenshot the answer needs, 0 for the newest; None where nobody has said.
        text: the policy's own answer.
        same: it does what the full cache's does.
        same_words: it is the same.
        kl, logprob: as `Distance`; None where they could not be had.
        held: slots that the prompt's row shows.
        prompt: tokens of the prompt.
    """

    thread: str
    turn: int
    scored: bool
    screenshots: int
    ago: int | None
    text: str
    same: bool
    same_words: bool
    kl: float | None
    logprob: float | None
    held: int
    prompt: int


class TurnFile:
    """A file of turns; what it holds is not asked again.

    Args:
        path: made when the first turn is added.
        kind: of its rows.

    Raises:
        TuneError: it is damaged.
    """

    def __init__(self, path: Path, kind: type[_R]) -> None:
        self._path = path
        self.rows: dict[tuple[str, int], Any] = {(row.thread, row.turn): row for row in read_turns(path, kind)}

    def add(self, row: FullTurn | CellTurn) -> None:
        """Append a turn."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(row), ensure_ascii=False) + "\n")
        self.rows[row.thread, row.turn] = row

    def lacks(self, thread: str, num_turns: int) -> bool:
        """Whether a turn of a thread is missing."""
        return any((thread, turn) not in self.rows for turn in range(num_turns))


def read_turns(path: Path, kind: type[_R]) -> list[_R]:
    """The turns of a file; a last line that was cut off is taken out.

    Raises:
        TuneError: another line is damaged.
    """
    names = {one.name for one in fields(kind)}
    rows = []
    for number, line in enumerate(read_lines(path, repair=True), start=1):
        try:
            row = json.loads(line)
            rows.append(kind(**{name: value for name, value in row.items() if name in names}))
        except (ValueError, TypeError, AttributeError) as error:
            raise TuneError(f"{path}: line {number} is damaged ({error}); remove the line to go on") from error
    return rows


def turn_file(folder: Path, cell: str) -> Path:
    """Where a cell's turns are."""
    return folder / TURNS / f"{cell}.jsonl"


def open_folder(folder: Path, settings: Mapping[str, Any]) -> TextIO:
    """Makes the folder, or checks that what it holds was asked in the same way.

    Returns:
        A lock on it, which the caller holds as long as it writes.

    Raises:
        TuneError: it was not, and the message lists what differs; or another process writes there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        lock = locked(folder, LOCK_FILE, what="run")
    except FolderInUseError as error:
        raise TuneError(str(error)) from None
    try:
        _keep_settings(folder / SETTINGS_FILE, json.loads(json.dumps(settings)))
    except Exception:
        lock.close()
        raise
    return lock


def _keep_settings(path: Path, now: dict[str, Any]) -> None:
    if path.exists():
        try:
            before = dict(json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise TuneError(f"{path} is damaged ({error}); give another --out") from error
        changed = sorted(name for name in {*before, *now} if before.get(name) != now.get(name))
        if changed:
            lines = "\n".join(f"  - {name}: {before.get(name)!r} there, {now.get(name)!r} now" for name in changed)
            raise TuneError(f"{path.parent} holds another run:\n{lines}\nGive another --out, or the same settings.")
    else:
        whole = path.with_suffix(".new")
        whole.write_text(json.dumps(now, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        whole.replace(path)
