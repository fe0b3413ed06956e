"""Reading a profile: whose kernels are whose."""

from __future__ import annotations

from pathlib import Path

import pytest

from star_kv_sglang.bench.turn import append_csv, read_profile
from star_kv_sglang.engine.ranges import stage


def event(category: str, name: str, start: float, microseconds: float) -> dict[str, object]:
    return {"cat": category, "name": name, "ts": start, "dur": microseconds}


EVENTS = [
    event("kernel", "gemm", 0.0, 900.0),
    event("gpu_user_annotation", "star_kv.window_scores", 900.0, 5.0),
    event("kernel", "window_pool_kernel", 900.0, 4.0),
    event("kernel", "gemm", 906.0, 94.0),
    event("gpu_user_annotation", "star_kv.window_scores", 1000.0, 2.0),
    event("kernel", "window_pool_kernel", 1000.0, 2.0),
    event("gpu_user_annotation", "star_kv.prune", 1010.0, 50.0),
    event("gpu_memcpy", "DtoD", 1010.0, 1.0),
    event("kernel", "compact_kernel", 1057.0, 3.0),
    event("gpu_user_annotation", "somebody_else", 0.0, 500.0),
    event("user_annotation", "star_kv.prune", 990.0, 70.0),
    {"ph": "M", "name": "process_name"},
]


def test_kernels_inside_a_stage_are_its_own_and_the_waits_between_them_are_not() -> None:
    profile = read_profile(EVENTS)
    assert profile.kernel_us == 1004.0
    found = [(s.name, s.num_ranges, s.gpu_us, s.elapsed_us) for s in profile.stages]
    assert found == [("prune", 1, 4.0, 50.0), ("window_scores", 2, 6.0, 7.0)]
    assert [s.share for s in profile.stages] == [pytest.approx(4 / 994), pytest.approx(6 / 994)]
    assert profile.policy_share == pytest.approx(10 / 994)


def test_rows_carry_the_machine(tmp_path: Path) -> None:
    path = tmp_path / "turn.csv"
    append_csv(path, "star", read_profile(EVENTS))
    append_csv(path, "star", read_profile(EVENTS))
    header, *rows = path.read_text(encoding="utf-8").splitlines()
    assert len(rows) == 4
    assert {"gpu", "torch", "sglang", "name", "gpu_us", "share", "turn_kernel_us"} <= set(header.split(","))


def test_a_stage_costs_nothing_without_a_profiler() -> None:
    with stage("anything") as range_object:
        assert range_object is None
