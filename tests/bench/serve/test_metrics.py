"""What is read from the server's Prometheus page and log."""

from __future__ import annotations

import pytest

from star_kv_sglang.tools.bench.serve.metrics import engine_ms_per_step, num_retracted, pool_state

PAGE = """\
# HELP sglang:kv_available_tokens Number of free slots.
# TYPE sglang:kv_available_tokens gauge
sglang:kv_available_tokens{model_name="m",tp_rank="0"} 19645.0
sglang:max_total_num_tokens{model_name="m",tp_rank="0"} 20000.0
sglang:evicted_tokens_total{cache_type="RadixCache",tp_rank="0"} 105.0
sglang:num_retracted_requests_total{tp_rank="0"} 2.0
sglang:num_retracted_input_tokens_total{tp_rank="0"} 900.0
sglang:per_stage_req_latency_seconds_count{stage="request_process",tp_rank="0"} 7.0
sglang:per_stage_req_latency_seconds_count{stage="prefill_forward",tp_rank="0"} 4.0
"""


def _decode_line(running: int, throughput: float) -> str:
    return (
        f"[2026-11-22 10:32:26] Decode batch, #running-req: {running}, #token: 238, token usage: 0.01, "
        f"cpu graph: False, gen throughput (token/s): {throughput:.2f}, #queue-req: 0\n"
    )


def test_pool_and_queue() -> None:
    pool = pool_state(PAGE)
    assert (pool.num_slots, pool.num_used, pool.num_evicted) == (20000, 355, 105)
    assert (pool.num_retracted, pool.num_queued) == (2, 7)


def test_counters_that_have_not_counted_yet_are_zero() -> None:
    pool = pool_state("sglang:max_total_num_tokens{} 500\nsglang:kv_available_tokens{} 500\n")
    assert (pool.num_used, pool.num_evicted, pool.num_retracted, pool.num_queued) == (0, 0, 0, 0)


def test_step_time_is_the_mean_over_whole_intervals_of_this_batch() -> None:
    log = (
        _decode_line(1, 200.0)
        + _decode_line(4, 3.0)  # began when one request ran
        + _decode_line(4, 400.0)
        + _decode_line(4, 200.0)
    )
    assert engine_ms_per_step(log, 4) == pytest.approx((10 + 20) / 2)


def test_one_interval_is_not_whole() -> None:
    assert engine_ms_per_step(_decode_line(4, 400.0), 4) is None


def test_retractions_are_counted_in_the_log() -> None:
    log = (
        "[..] KV cache pool is full. Retract requests. #retracted_reqs: 2, #new_tokens_gained: 54, "
        "#new_token_ratio: 0.0700 -> 1.0000\n"
        "[..] Testing retraction. #retracted_reqs: 9, #new_tokens_gained: 1\n"
        "[..] KV cache pool is full. Retract requests. #retracted_reqs: 1, #new_tokens_gained: 8\n"
    )
    assert num_retracted(log) == 3
