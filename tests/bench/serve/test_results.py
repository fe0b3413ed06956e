"""Rows of the CSV: complete the moment they exist, and read back as they were."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from star_kv_sglang.tools.bench.serve.errors import ServeBenchError
from star_kv_sglang.tools.bench.serve.machine import first_gpu
from star_kv_sglang.tools.bench.serve.plot import draw
from star_kv_sglang.tools.bench.serve.results import COLUMNS, Figure, Machine, Results, read_runs
from star_kv_sglang.tools.bench.serve.summary import newest

FIGURES = (
    Figure("stock", "decode", "ms_per_step", 22.73, history=27_013, batch=32),
    Figure("star 0.2", "decode", "ms_per_step", None, history=27_013, batch=64, partial=True, note="no time, left"),
    Figure("stock", "branches", "branches_alive", 5.0, history=27_013),
)


def _machine(date: str) -> Machine:
    return Machine(date, "NVIDIA H100 80GB HBM3", 79.6, "580.1", "2.11.0", "0.5.17", "0.1.0", "Qwen2.5-VL 7b")


def test_every_row_names_machine_versions_and_date(tmp_path: Path) -> None:
    path = tmp_path / "new" / "serve.csv"
    Results(path, _machine("2026-01-01T00:00:00+00:00"), lambda: 61.5).add(FIGURES[0])
    with path.open(newline="", encoding="utf-8") as file:
        header, row = csv.reader(file)
    assert tuple(header) == COLUMNS
    told = dict(zip(header, row, strict=True))
    assert (told["gpu"], told["gpu_used_gib"], told["sglang"]) == ("NVIDIA H100 80GB HBM3", "61.50", "0.5.17")
    assert (told["metric"], told["value"], told["history"]) == ("ms_per_step", "22.73", "27013")


def test_figures_are_read_back_and_the_last_run_is_meant(tmp_path: Path) -> None:
    path = tmp_path / "serve.csv"
    Results(path, _machine("first")).add(Figure("stock", "decode", "ms_per_step", 1.0))
    Results(path, _machine("second")).add(*FIGURES)
    first, last = read_runs(path)
    assert last.figures == list(FIGURES)
    assert (first.date, [figure.value for figure in first.figures]) == ("first", [1.0])


def test_figures_of_all_runs_are_compared_within_one_run(tmp_path: Path) -> None:
    path = tmp_path / "serve.csv"

    def steps(policy: str, value: float, batch: int = 32) -> Figure:
        return Figure(policy, "decode", "ms_per_step", value, history=27_013, batch=batch)

    Results(path, _machine("first")).add(steps("stock", 22.0), steps("star 0.2", 9.8), steps("stock", 6.0, batch=1))
    Results(path, _machine("second")).add(steps("stock", 23.0), steps("full", 23.1))
    Results(path, _machine("third")).add(steps("star 0.2", 9.0), steps("stock", 7.0, batch=1))
    runs = read_runs(path)
    assert [run.date for run in runs] == ["first", "second", "third"]
    assert newest(run.figures for run in runs) == [
        steps("stock", 23.0),
        steps("full", 23.1),
        steps("stock", 7.0, batch=1),
    ]
    assert {run.machine for run in runs} == {"NVIDIA H100 80GB HBM3, Qwen2.5-VL 7b"}


def test_a_file_without_that_run(tmp_path: Path) -> None:
    path = tmp_path / "serve.csv"
    Results(path, _machine("first"))
    with pytest.raises(ServeBenchError, match="no run"):
        read_runs(path)


def test_another_table_is_not_appended_to(tmp_path: Path) -> None:
    path = tmp_path / "serve.csv"
    path.write_text("op,ms\n", encoding="utf-8")
    with pytest.raises(ServeBenchError, match="other columns"):
        Results(path, _machine("first"))
    assert path.read_text(encoding="utf-8") == "op,ms\n"


def test_the_plot_takes_incomplete_runs(tmp_path: Path) -> None:
    draw(FIGURES, tmp_path / "serve.png", title="serve")
    assert (tmp_path / "serve.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("visible", "first"), [(None, "0"), ("", "0"), ("2,3", "2"), (" GPU-5ab , 1", "GPU-5ab")], ids=str
)
def test_the_gpu_that_is_looked_at_is_the_first_that_is_seen(
    monkeypatch: pytest.MonkeyPatch, visible: str | None, first: str
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert first_gpu() == first
