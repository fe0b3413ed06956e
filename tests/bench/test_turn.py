"""Reading a profile: whose kernels are whose, and which calls wait."""

from __future__ import annotations

from pathlib import Path

import pytest

from star_kv_sglang import cpu_mode
from star_kv_sglang.engine.ranges import profiled, stage
from star_kv_sglang.tools.bench.turn import Case, TurnProfile, append_csv, columns, profile_turn
from star_kv_sglang.tools.bench.turn_profile import Waits, read_profile
from star_kv_sglang.tools.cli.bench_turn import stage_table, wait_table
from tests.engine.harness import STRICT_CHECKS, other_models
from tests.engine.machine import engine_arguments, environment
from tests.engine.preloaded import kept_at_shutdown, preloaded_processes


def event(
    category: str, name: str, start: float, microseconds: float, *, number: int | None = None
) -> dict[str, object]:
    args = {} if number is None else {"args": {"correlation": number}}
    return {"cat": category, "name": name, "ts": start, "dur": microseconds, **args}


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

STEPS = [
    event("user_annotation", "step[EXTEND bs=1 toks=12]", 0.0, 50.0),
    event("gpu_user_annotation", "step[EXTEND bs=1 toks=12]", 10.0, 90.0),
    event("user_annotation", "star_kv.prune", 60.0, 30.0),
    event("user_annotation", "star_kv.state", 55.0, 4.0),
    event("user_annotation", "step[DECODE bs=1]", 100.0, 5.0),
    event("user_annotation", "step[DECODE bs=1]", 110.0, 5.0),
    event("kernel", "gemm", 10.0, 40.0),
    # what SGLang does after each forward pass: the tokens go to pinned memory, and an event says when they are there
    event("cuda_runtime", "cudaMemcpyAsync", 51.0, 1.0, number=1),
    event("gpu_memcpy", "Memcpy DtoH (Device -> Pinned)", 52.0, 1.0, number=1),
    event("cuda_runtime", "cudaEventSynchronize", 54.0, 1.0, number=2),
    # what a policy should not do: read a tensor
    event("cuda_runtime", "cudaMemcpyAsync", 61.0, 1.0, number=3),
    event("gpu_memcpy", "Memcpy DtoH (Device -> Pageable)", 62.0, 1.0, number=3),
    event("cuda_runtime", "cudaStreamSynchronize", 63.0, 1.0, number=4),
    event("cuda_runtime", "cudaMemcpy", 101.0, 1.0, number=5),
    event("gpu_memcpy", "Memcpy DtoH (Device -> Pinned)", 102.0, 1.0, number=5),
    # to the device, inside of it, or no wait at all
    event("cuda_runtime", "cudaMemcpyAsync", 64.0, 1.0, number=6),
    event("gpu_memcpy", "Memcpy HtoD (Pageable -> Device)", 64.0, 1.0, number=6),
    event("cuda_runtime", "cudaMemcpyAsync", 65.0, 1.0, number=7),
    event("gpu_memcpy", "Memcpy DtoD (Device -> Device)", 65.0, 1.0, number=7),
    event("cuda_runtime", "cudaLaunchKernel", 66.0, 1.0, number=8),
    event("cuda_runtime", "cudaStreamWaitEvent", 67.0, 1.0, number=9),
    event("cpu_op", "cudaStreamSynchronize", 68.0, 1.0),
    event("cuda_runtime", "cudaDeviceSynchronize", 200.0, 1.0, number=10),
]


def test_kernels_inside_a_stage_are_its_own_and_the_waits_between_them_are_not() -> None:
    profile = read_profile(EVENTS)
    assert profile.kernel_us == 1004.0
    found = [(s.name, s.num_ranges, s.gpu_us, s.elapsed_us) for s in profile.stages]
    assert found == [("prune", 1, 4.0, 50.0), ("window_scores", 2, 6.0, 7.0)]
    assert [s.share for s in profile.stages] == [pytest.approx(4 / 994), pytest.approx(6 / 994)]
    assert profile.policy_share == pytest.approx(10 / 994)


def test_calls_that_wait_are_counted_and_those_inside_a_stage_are_its_own() -> None:
    profile = read_profile(STEPS)
    assert (profile.num_prefills, profile.num_decodes) == (1, 2)
    assert profile.waits == Waits(stream=1, device=1, event=1, copies=2, queued_copies=1)
    assert profile.waits.total == 5
    prune, state = profile.stages
    assert (prune.name, prune.num_ranges, prune.waits) == ("prune", 1, Waits(stream=1, copies=1))
    # a stage that only waits has a range on the host and none on the device
    assert (state.name, state.num_ranges, state.gpu_us, state.waits) == ("state", 1, 0.0, Waits())
    assert profile.policy_waits == 2


def test_a_profile_without_the_policy_has_only_calls() -> None:
    profile = read_profile([one for one in STEPS if not str(one["name"]).startswith("star_kv")])
    assert profile.stages == ()
    assert profile.policy_share == 0
    assert profile.waits.total == 5
    assert read_profile([]).waits == Waits()


def test_rows_carry_the_machine(tmp_path: Path) -> None:
    path = tmp_path / "turn.csv"
    profile = TurnProfile(read_profile(EVENTS), read_profile(STEPS))
    append_csv(path, Case(), profile)
    append_csv(path, Case("full"), profile)
    header, *rows = path.read_text(encoding="utf-8").splitlines()
    assert header.split(",") == columns()
    assert len(rows) == 2 * (2 + 1 + 2 + 1)
    assert {"gpu", "torch", "sglang", "policy", "part", "name", "gpu_us", "share", "stream_waits"} <= set(columns())
    assert rows[2].endswith(",turn,0,0,1004.0,everything,,,,,0,0,0,0,0")
    assert rows[5].endswith(",decode,1,2,45.0,everything,,,,,1,1,1,2,1")


def test_a_file_with_other_columns_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "old.csv"
    path.write_text("date,gpu\n", encoding="utf-8")
    profile = read_profile(EVENTS)
    with pytest.raises(ValueError, match="name another file"):
        append_csv(path, Case(), TurnProfile(profile, profile))
    assert path.read_text(encoding="utf-8") == "date,gpu\n"


def test_the_tables_show_stages_and_waits() -> None:
    profile = TurnProfile(read_profile(EVENTS), read_profile(STEPS))
    assert stage_table("star", "turn", profile.turn).row_count == 3
    assert list(stage_table("star", "decode", profile.decode).columns[-1].cells) == ["2", "0", "2"]
    waits = wait_table({"star": profile, "full": profile})
    assert [list(column.cells) for column in waits.columns[:2]] == [
        ["turn", "turn", "decode", "decode"],
        ["star", "full", "star", "full"],
    ]
    assert list(waits.columns[-1].cells) == ["", "", "1.67", "1.67"]


def test_a_stage_costs_nothing_without_a_profiler() -> None:
    for ranges in (stage, profiled):
        with ranges("anything") as range_object:
            assert range_object is None


@pytest.mark.slow
@pytest.mark.skipif(cpu_mode.is_gpu_present(), reason="a GPU is profiled by the command itself")
def test_both_profiles_come_from_a_real_engine(tmp_path: Path) -> None:
    case = Case(num_cached_screens=2, num_steps=4, shape="tiny", screen_size=(280, 168))
    arguments = engine_arguments(max_total_tokens=4000, skip_server_warmup=True, log_level="error")
    checks = {**STRICT_CHECKS, "SGLANG_DISABLED_MODEL_ARCHS": other_models()}
    with environment(checks), preloaded_processes(), kept_at_shutdown():
        profile = profile_turn(tmp_path, case, arguments)
    stages = {one.name: one.num_ranges for one in profile.turn.stages}
    once = dict.fromkeys(("begin", "fuse", "store", "select", "agree", "state", "prune", "register"), 1)
    # Sinks are looked for in the second layer, and marked behind the last.
    assert stages == {**once, "frame_means": 2, "frame_norms": 2, "sinks": 2}
    assert profile.turn.num_prefills == 1
    assert profile.decode.num_prefills == 0
    # the profiler starts and ends some steps late
    assert 2 <= profile.decode.num_decodes <= 4 + 40
