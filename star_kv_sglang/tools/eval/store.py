"""A run's folder: what was run (``run.json``), every sample's result (``results.jsonl``), rows left out
(``problems.jsonl``). A run that stopped goes on in the same folder.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from star_kv_sglang.tools.eval.errors import MalformedRow, RunFolderError

RUN_FILE: Final = "run.json"
RESULTS_FILE: Final = "results.jsonl"
PROBLEMS_FILE: Final = "problems.jsonl"


class Status(StrEnum):
    """What became of a sample."""

    OK = "ok"
    UNREADABLE = "unreadable"
    """The reply holds no action: scored as wrong."""
    FAILED = "failed"
    """The request failed: not scored, asked again when the run is resumed."""


@dataclass(frozen=True, slots=True)
class Result:
    """One sample of a run; a line of ``results.jsonl``.

    Attributes:
        sample, episode: identifiers of the step and of its episode.
        status: what became of it.
        score, parts: the benchmark's figures; 0 and empty when it failed.
        groups: the tables that it counts in.
        reply, actions: the model's words, and what was read in them.
        error: why it is unreadable or failed.
        finish_reason, prompt_tokens, cached_tokens, completion_tokens, latency_s: as `Completion` has them.
    """

    sample: str
    episode: str
    status: Status
    score: float = 0.0
    parts: Mapping[str, float] = field(default_factory=dict)
    groups: Mapping[str, str] = field(default_factory=dict)
    reply: str = ""
    actions: Sequence[Mapping[str, Any]] = ()
    error: str = ""
    finish_reason: str = ""
    prompt_tokens: int = 0
    cached_tokens: int | None = None
    completion_tokens: int = 0
    latency_s: float = 0.0

    @property
    def scored(self) -> bool:
        """Whether it counts in the means."""
        return self.status is not Status.FAILED


@dataclass(frozen=True, slots=True)
class Run:
    """A run as it lies on disk.

    Attributes:
        folder: where.
        settings: what must be the same for runs to be resumed, from ``run.json``.
        label: what to call it in tables.
        results: the last result of each sample, in the order of their first lines.
        num_problems: rows of the data set that were left out.
    """

    folder: Path
    settings: Mapping[str, Any]
    label: str
    results: tuple[Result, ...]
    num_problems: int = 0


class RunFolder:
    """Writes a run; a context manager.

    Args:
        folder: made when it does not exist.
        settings: what was run. A folder that holds other settings is refused.
        label: what to call the run in tables.

    Raises:
        RunFolderError: the folder holds another run, or damaged files.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any], label: str) -> None:
        self.folder = folder
        self.done: dict[str, Result] = {}
        folder.mkdir(parents=True, exist_ok=True)
        run_file = folder / RUN_FILE
        if run_file.exists():
            refuse_other_run(folder, settings)
            self.done = {result.sample: result for result in _read_results(folder / RESULTS_FILE, repair=True)}
        text = json.dumps({"label": label, "settings": settings}, indent=1, ensure_ascii=False)
        run_file.write_text(f"{text}\n", encoding="utf-8")
        self._file = (folder / RESULTS_FILE).open("a", encoding="utf-8")

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def add(self, result: Result) -> None:
        """Appends a result; a later one of the same sample counts instead of an earlier."""
        self._file.write(json.dumps(asdict(result), ensure_ascii=False) + "\n")
        self._file.flush()
        self.done[result.sample] = result

    def add_problems(self, problems: Iterable[MalformedRow]) -> None:
        """Writes the rows that were left out."""
        rows = ({"file": str(p.path), "row": p.row, "reason": p.reason} for p in problems)
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (self.folder / PROBLEMS_FILE).write_text(text, encoding="utf-8")


def load_run(folder: Path) -> Run:
    """Reads a run's folder.

    Raises:
        RunFolderError: it holds no run, or damaged files.
    """
    description = _read_object(folder / RUN_FILE)
    problems = folder / PROBLEMS_FILE
    lines = problems.read_text(encoding="utf-8").splitlines() if problems.exists() else []
    try:
        settings, label = description["settings"], description["label"]
    except KeyError as error:
        raise RunFolderError(f"{folder / RUN_FILE} lacks {error}; the folder was not written by star-kv eval") from None
    latest = {result.sample: result for result in _read_results(folder / RESULTS_FILE, repair=False)}
    return Run(folder, settings, str(label), tuple(latest.values()), len(lines))


def _read_object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RunFolderError(f"{path} does not exist; give a folder that star-kv eval run wrote") from None
    except ValueError as error:
        raise RunFolderError(f"{path} is damaged: {error}; use another folder") from error
    if not isinstance(value, dict):
        raise RunFolderError(f"{path} is damaged: it holds no object; use another folder")
    return value


def refuse_other_run(folder: Path, settings: Mapping[str, Any], ignore: Collection[str] = ()) -> None:
    """Checks that a folder's run was asked what ``settings`` say, but for the settings in ``ignore``.

    Raises:
        RunFolderError: it was not, or the folder holds no run; the message lists what differs.
    """
    path = folder / RUN_FILE
    before = _read_object(path).get("settings", {})
    now = json.loads(json.dumps(settings))
    names = {*before, *now}.difference(ignore)
    changed = sorted(name for name in names if before.get(name) != now.get(name))
    if changed:
        lines = "\n".join(f"  - {name}: {before.get(name)!r} there, {now.get(name)!r} now" for name in changed)
        raise RunFolderError(f"{path.parent} holds another run:\n{lines}\nGive another --out, or the same settings.")


def read_lines(path: Path, *, repair: bool) -> list[bytes]:
    """The whole lines of a file that a run appends to; none when there is no file.

    Args:
        path: the file.
        repair: a last line that was cut when the run was killed is removed from the file; what it held is asked again.
    """
    if not path.exists():
        return []
    raw = path.read_bytes()
    whole = raw.rfind(b"\n") + 1
    if repair and whole < len(raw):
        with path.open("rb+") as file:
            file.truncate(whole)
    return raw[:whole].split(b"\n")[:-1]


def _read_results(path: Path, *, repair: bool) -> list[Result]:
    known = {item.name for item in fields(Result)}
    results = []
    for number, line in enumerate(read_lines(path, repair=repair), start=1):
        try:
            row = json.loads(line.decode("utf-8", "replace"))
            kept = {name: value for name, value in row.items() if name in known}
            results.append(Result(**{**kept, "status": Status(row["status"])}))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise RunFolderError(f"{path}: line {number} is damaged ({error}); remove the line to go on") from error
    return results
