from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch

from star_kv_sglang.engine import tree_budget
from star_kv_sglang.tools.bench.budget_step import StepShape, append_csv, measure

SMALL = StepShape(num_branches=6, num_screens=3, num_layers=2, num_groups=1, head_dim=8, excess=40)


def test_every_step_frees_what_it_has_to(tmp_path: Path) -> None:
    times = measure(SMALL, torch.device("cpu"), num_steps=4)
    assert times.num_freed == SMALL.excess
    assert 1 <= times.num_segments <= 18
    append_csv(tmp_path / "steps.csv", SMALL, times)
    (row,) = csv.DictReader((tmp_path / "steps.csv").read_text(encoding="utf-8").splitlines())
    assert float(row["median_ms"]) > 0 and row["num_branches"] == "6"


def test_where_many_compete_few_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eighteen segments would lose two tokens each; four at most may be cut."""
    monkeypatch.setattr(tree_budget, "MAX_SEGMENTS_PER_STEP", 4)
    times = measure(SMALL, torch.device("cpu"), num_steps=3)
    assert SMALL.excess <= times.num_freed < 2 * SMALL.excess
    assert times.num_segments <= 4
