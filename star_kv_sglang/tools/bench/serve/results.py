"""One measured figure a row, appended to a CSV the moment it exists."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from star_kv_sglang.tools.bench.append import append_rows, header
from star_kv_sglang.tools.bench.serve.errors import ServeBenchError


@dataclass(frozen=True)
class Machine:
    """Where and with what a run was made; the same in all of its rows.

    Attributes:
        date: start of the run, ISO 8601, UTC. It names the run.
        gpu: name of the GPU, or of the processor where there is none.
        gpu_memory_gib: its memory; 0.0 without a GPU.
        driver, torch, sglang, star_kv: versions.
        model: what was served.
    """

    date: str
    gpu: str
    gpu_memory_gib: float
    driver: str
    torch: str
    sglang: str
    star_kv: str
    model: str


@dataclass(frozen=True)
class Figure:
    """A measured figure.

    Attributes:
        policy: label of the server's policy.
        phase: the measurement that it belongs to.
        metric: its name, with the unit at the end.
        value: None where it could not be measured; ``note`` says why.
        history: tokens of history of each branch before pruning; 0 where it does not apply.
        batch: branches at the same time, or the turn's number in ``ttft``.
        partial: the phase ran out of time before all of it was measured.
        note: what a reader must know.
    """

    policy: str
    phase: str
    metric: str
    value: float | None
    history: int = 0
    batch: int = 0
    partial: bool = False
    note: str = ""


COLUMNS = (*(f.name for f in fields(Machine)), *(f.name for f in fields(Figure)), "gpu_used_gib")


@dataclass
class Results:
    """The figures of a run, in memory and in the CSV.

    Args:
        path: the CSV; created with its header, or appended to.
        machine: goes into each row.
        gpu_used_gib: asked for each row; None without a GPU.

    Raises:
        ServeBenchError: the file has other columns.
    """

    path: Path
    machine: Machine
    gpu_used_gib: Callable[[], float | None] = lambda: None
    figures: list[Figure] = field(default_factory=list)

    def __post_init__(self) -> None:
        if tuple(header(self.path)) not in ((), COLUMNS):
            raise ServeBenchError(f"{self.path} has other columns; move it away, or name another file with --csv")
        append_rows(self.path, [], COLUMNS)

    def add(self, *figures: Figure) -> None:
        """Keep figures and append them to the file."""
        self.figures += figures
        used = self.gpu_used_gib()
        memory = None if used is None else f"{used:.2f}"
        rows = ([*asdict(self.machine).values(), *asdict(figure).values(), memory] for figure in figures)
        append_rows(self.path, [dict(zip(COLUMNS, row, strict=True)) for row in rows])


@dataclass
class SavedRun:
    """A run of a CSV.

    Attributes:
        date: of the run.
        machine: GPU and model, for a title.
        figures: in the order of the file.
    """

    date: str
    machine: str
    figures: list[Figure] = field(default_factory=list)


def read_runs(path: Path) -> list[SavedRun]:
    """All runs of a CSV, in the order of the file.

    Raises:
        ServeBenchError: the file holds no run.
    """
    runs: dict[str, SavedRun] = {}
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            run = runs.setdefault(row["date"], SavedRun(row["date"], f"{row['gpu']}, {row['model']}"))
            run.figures.append(_figure(row))
    if not runs:
        raise ServeBenchError(f"{path} holds no run")
    return list(runs.values())


def _figure(row: Mapping[str, str]) -> Figure:
    return Figure(
        policy=row["policy"],
        phase=row["phase"],
        metric=row["metric"],
        value=float(row["value"]) if row["value"] else None,
        history=int(row["history"]),
        batch=int(row["batch"]),
        partial=row["partial"] == "True",
        note=row["note"],
    )
