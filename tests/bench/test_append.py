"""CSV files that grow run by run."""

from __future__ import annotations

from pathlib import Path

import pytest

from star_kv_sglang.tools.bench.append import append_rows, header


def test_the_header_is_written_once(tmp_path: Path) -> None:
    path = tmp_path / "new" / "rows.csv"
    append_rows(path, [])
    assert not path.exists()
    append_rows(tmp_path / "empty.csv", [], ["op", "us"])
    assert (tmp_path / "empty.csv").read_text().splitlines() == ["op,us"]
    assert header(path) == []
    append_rows(path, [{"op": "a", "us": 1.5}])
    append_rows(path, [{"op": "b", "us": 2.5}, {"op": "c", "us": 3.5}])
    assert path.read_text(encoding="utf-8").splitlines() == ["op,us", "a,1.5", "b,2.5", "c,3.5"]
    assert header(path) == ["op", "us"]


def test_rows_do_not_go_under_another_header(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("op,ms\n", encoding="utf-8")
    with pytest.raises(ValueError, match="name another file"):
        append_rows(path, [{"op": "a", "us": 1.5}])
    assert path.read_text(encoding="utf-8") == "op,ms\n"
