from __future__ import annotations

import csv
from pathlib import Path

import pytest
from typer.testing import CliRunner

from star_kv_sglang.tools.bench import waiting
from star_kv_sglang.tools.cli.bench import bench_app

SMALL = waiting.QueueShape(num_waiting=6, num_shared=40, num_own=3)


def test_every_way_to_ask_is_measured() -> None:
    rows = list(waiting.measure(SMALL, num_queries=20))
    assert [(row.query, row.num_queries) for row in rows] == [
        ("compare with all", 2),
        ("tree, all are new", 2),
        ("tree, nobody is new", 20),
        ("tree, one left and one came", 20),
    ]
    assert all(0 < row.median_us <= row.worst_us for row in rows)


def test_the_command_appends_its_rows(tmp_path: Path) -> None:
    path = tmp_path / "waiting.csv"
    sizes = ["--requests", "4", "--shared", "30", "--own", "2", "--queries", "3"]
    result = CliRunner().invoke(bench_app, ["waiting", *sizes, "--csv", str(path)])
    assert result.exit_code == 0, result.output
    assert "4 requests wait and share 30 tokens" in " ".join(result.output.split())
    rows = list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))
    assert len(rows) == 4
    assert {(row["num_waiting"], row["num_shared"], row["num_own"]) for row in rows} == {("4", "30", "2")}


def test_a_wrong_answer_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "compare_all", lambda req, others: 1)
    with pytest.raises(RuntimeError, match="1 tokens in common were found, not 40"):
        list(waiting.measure(SMALL))
