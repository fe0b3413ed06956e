"""A branch's trace: one JSONL file, a line that says which branch it is, a line for each turn, and one for the end.

What is under ``measured`` (seconds, cache hits, ids of requests) is different in every run. All else is the same in
every run of the same settings, as far as the server's replies are.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from star_kv_sglang.tools.actions import Action, ActionKind
from star_kv_sglang.tools.rollout.errors import RolloutError

TRACE_FORMAT: Final = "star-kv rollout trace 1"
"""First word of every trace; the number changes when the fields do."""


class End(StrEnum):
    """How a branch ended."""

    DONE = "done"
    """The environment's episode is over."""
    FINISHED = "finished"
    """The agent said that it is."""
    TURNS = "turns"
    """It has used all turns that it may."""
    GAVE_UP = "gave up"
    """Too many turns in a row without an action that could be done."""
    FAILED = "failed"
    """A fault that further tries did not mend. The next run of the same command goes on from the last turn."""


@dataclass(frozen=True, slots=True)
class Branch:
    """Which branch.

    Attributes:
        task: The suite's name of the task.
        name: Unique within the task: ``3``, or ``0.2`` for the third child of branch ``0``.
        seed: Of the episode.
        first_turn: Turns that it took over from its parent; 0 without one.
    """

    task: str
    name: str
    seed: int
    first_turn: int = 0

    @property
    def label(self) -> str:
        """How messages call it."""
        return f"{self.task} {self.name}"

    @property
    def origin(self) -> str:
        """Branches of one origin see the same until their first turn, and share that turn's prompt."""
        return f"{self.task} {self.name.rpartition('.')[0]}"


@dataclass(frozen=True, slots=True)
class TurnRow:
    """One turn.

    Attributes:
        turn: Counts from 0.
        screen: SHA-256 of the screenshot, whose file is ``screens/<sha256>.png``.
        reply: The model's words.
        said: What later turns see in their place.
        actions: What was read in them and done, in order.
        error: Why nothing, or not all, was done; None where all was.
        reward, done: How the episode stood after the turn.
        measured: Seconds of the turn by where they went (``environment_s``, ``server_s``, ``waiting_s``, ``own_s``),
            and the server's account of the request.
    """

    turn: int
    screen: str
    reply: str
    said: str
    actions: tuple[Action, ...]
    error: str | None
    reward: float
    done: bool
    measured: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """A line of the trace."""
        return {**asdict(self), "actions": [action.to_json() for action in self.actions]}

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> TurnRow:
        """Read a line of the trace; a missing or unknown field is a TypeError, KeyError or ValueError."""
        return cls(**{**row, "actions": tuple(_action(action) for action in row["actions"])})


@dataclass(frozen=True, slots=True)
class EndRow:
    """The end of a branch.

    Attributes:
        end: How.
        turns: Turns that it has.
        reward: Of the episode.
        error: What failed; None otherwise.
        measured: ``opening_s``, seconds for environments to open and to come back to the branch's place, and
            ``retries``, the environments that were given up.
    """

    end: End
    turns: int
    reward: float
    error: str | None = None
    measured: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class BranchResult:
    """What became of a branch."""

    branch: Branch
    rows: tuple[TurnRow, ...]
    end: EndRow

    @property
    def success(self) -> bool:
        """Whether the episode ended with a reward above zero."""
        return self.end.reward > 0


class Trace:
    """The file of one branch; a context manager. What it holds already is read, and further lines are added.

    Args:
        path: The file; made when it does not exist.
        branch: Whose trace it is.
        rows: What a new file begins with: the turns of the parent up to the fork.

    Raises:
        RolloutError: The file is another branch's, of another format, or damaged.
    """

    def __init__(self, path: Path, branch: Branch, rows: Sequence[TurnRow] = ()) -> None:
        self._branch = branch
        self.rows: list[TurnRow] = list(rows)
        self.end: EndRow | None = None
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            before, self.rows, self.end = read_trace(path, repair=True)
            if before != branch:
                raise RolloutError(f"{path} is the trace of {before}, not of {branch}; use another folder")
        if not path.exists():
            _write_atomically(path, [_header(branch), *(row.to_json() for row in self.rows)])
        self._file = path.open("a", encoding="utf-8")

    def __enter__(self) -> Trace:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def add(self, row: TurnRow) -> None:
        """Append a turn."""
        self.rows.append(row)
        self._write(row.to_json())

    def finish(self, end: EndRow) -> BranchResult:
        """Append the end."""
        self.end = end
        self._write(asdict(end))
        return BranchResult(self._branch, tuple(self.rows), end)

    def _write(self, row: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(row, ensure_ascii=False) + "\n")
        self._file.flush()


def read_trace(path: Path, *, repair: bool = False) -> tuple[Branch, list[TurnRow], EndRow | None]:
    """A trace: whose it is, its turns, and its end if it has one.

    Args:
        path: The file.
        repair: Take out of the file what a later run goes on from: a last line that was cut when the run was killed,
            and an end by a fault.

    Raises:
        RolloutError: The file is of another format, or damaged.
    """
    raw = path.read_bytes()
    lines = raw[: raw.rfind(b"\n") + 1].split(b"\n")[:-1]
    parsed = [_parse(path, number, line) for number, line in enumerate(lines, start=1)]
    if not parsed or parsed[0].get("format") != TRACE_FORMAT:
        found = parsed[0].get("format") if parsed else None
        raise RolloutError(
            f"{path} is of the format {found!r}, and this version writes {TRACE_FORMAT!r}; use another folder, or the "
            "version that wrote it"
        )
    number = 1
    try:
        branch = Branch(**{name: value for name, value in parsed[0].items() if name != "format"})
        rows, end = list[TurnRow](), None
        for row in parsed[1:]:
            number += 1
            if "end" in row:
                end = EndRow(**{**row, "end": End(row["end"])})
            else:
                rows.append(TurnRow.from_json(row))
    except (KeyError, TypeError, ValueError) as error:
        raise RolloutError(f"{path}: line {number} is damaged ({error}); remove the file to play it again") from error
    if [row.turn for row in rows] != list(range(len(rows))):
        raise RolloutError(f"{path}: its turns are not in order; remove the file to play it again")
    failed = end is not None and end.end is End.FAILED
    if repair and (failed or raw[-1:] != b"\n"):
        end = None if failed else end
        kept = [_header(branch), *(row.to_json() for row in rows), *([] if end is None else [asdict(end)])]
        _write_atomically(path, kept)
    return branch, rows, end


def without_measurements(path: Path) -> list[dict[str, Any]]:
    """The lines of a trace as far as they are the same in every run."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [{name: value for name, value in row.items() if name != "measured"} for row in rows]


def _header(branch: Branch) -> dict[str, Any]:
    return {"format": TRACE_FORMAT, **asdict(branch)}


def _parse(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise RolloutError(f"{path}: line {number} is no JSON ({error}); remove the file to play it again") from error
    if not isinstance(row, dict):
        raise RolloutError(f"{path}: line {number} is no object; remove the file to play it again")
    return row


def _action(fields: Mapping[str, Any]) -> Action:
    action = Action(**{**fields, "kind": ActionKind(fields["kind"])})
    point, end = (None if one is None else (one[0], one[1]) for one in (action.point, action.end))
    return replace(action, point=point, end=end, keys=tuple(action.keys))


def _write_atomically(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """A run that is killed leaves the old file or the new one."""
    fresh = path.with_suffix(".new")
    fresh.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    os.replace(fresh, path)
