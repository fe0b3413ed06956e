from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from star_kv_sglang.tools.bench import recognition
from star_kv_sglang.tools.cli.bench import bench_app

SMALL = recognition.CacheShape(num_branches=4, num_turns=4, kept=2, rows=2, cols=3, num_words=5)


@pytest.mark.parametrize("shape", [SMALL, replace(SMALL, same_words=True, kept=3)])
def test_every_kind_of_prompt_is_measured(shape: recognition.CacheShape) -> None:
    rows = list(recognition.measure(shape, num_queries=5))
    assert [row.query for row in rows] == [
        f"the newest {shape.kept} screenshots",
        "the newest one",
        "all screenshots",
        "another task",
    ]
    assert all(0 < row.median_us <= row.worst_us for row in rows)


def test_the_command_appends_its_rows(tmp_path: Path) -> None:
    path = tmp_path / "recognition.csv"
    sizes = ["--branches", "2", "--turns", "3", "--kept", "2", "--queries", "2"]
    result = CliRunner().invoke(bench_app, ["recognition", *sizes, "--csv", str(path)])
    assert result.exit_code == 0, result.output
    rows = list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))
    assert len(rows) == 4
    assert {(row["num_branches"], row["num_turns"], row["kept"]) for row in rows} == {("2", "3", "2")}


def test_a_wrong_branch_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recognition.Alignment, "best", lambda self, namespace: None)
    with pytest.raises(RuntimeError, match="0 screenshots were found to be left out, not 3"):
        list(recognition.measure(SMALL, num_queries=2))
