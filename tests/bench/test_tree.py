from __future__ import annotations

import csv
import math
from pathlib import Path

from star_kv_sglang.tools.bench.tree import append_csv, measure


def test_every_operation_is_compared(tmp_path: Path) -> None:
    """So many rounds that whole branches are evicted, and that forks end in the same node."""
    rows = list(measure(num_nodes=1000, num_operations=60, num_rounds=7))
    assert [row.operation for row in rows] == ["match", "lock and unlock", "insert", "evict", "prune, bookkeeping"]
    assert all(row.ratio > 0 for row in rows[:-1]) and math.isnan(rows[-1].ratio)
    assert rows[-1].star_us > 0
    append_csv(tmp_path / "tree.csv", rows)
    assert len(list(csv.DictReader((tmp_path / "tree.csv").read_text(encoding="utf-8").splitlines()))) == len(rows)
