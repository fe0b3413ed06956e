"""What a running SGLang says about itself: its Prometheus page, its load report and its log."""

from __future__ import annotations

import re
from dataclasses import dataclass
from statistics import fmean
from typing import Final

_SAMPLE: Final = re.compile(r"^sglang:(?P<name>\w+)(?:\{(?P<labels>[^}]*)\})? (?P<value>\S+)$", re.MULTILINE)
_DECODE: Final = re.compile(
    r"Decode batch.*?#running-req: (?P<running>\d+),.*?gen throughput \(token/s\): (?P<throughput>[\d.]+)"
)
_RETRACT: Final = re.compile(r"KV cache pool is full\. Retract requests\. #retracted_reqs: (\d+)")


def total(page: str, name: str, *, label: str = "") -> float:
    """Sum of the samples of a metric, without its prefix; 0.0 when it has none yet.

    Args:
        page: text of ``/metrics``.
        name: e.g. ``evicted_tokens_total``.
        label: text that the sample's labels must contain.
    """
    return sum(
        float(found["value"])
        for found in _SAMPLE.finditer(page)
        if found["name"] == name and label in (found["labels"] or "")
    )


@dataclass(frozen=True, slots=True)
class PoolState:
    """The pool and the queue at one moment, from ``/metrics``.

    Attributes:
        num_slots: size of the pool.
        num_used: slots that are not free: of running requests and of the radix tree.
        num_evicted: tokens that the tree has evicted since the start.
        num_retracted: requests that were put back since the start.
        num_queued: requests that have entered the scheduler's queue since the start.
    """

    num_slots: int
    num_used: int
    num_evicted: int
    num_retracted: int
    num_queued: int


def pool_state(page: str) -> PoolState:
    """Read a Prometheus page of a server with ``--enable-metrics``."""
    num_slots = int(total(page, "max_total_num_tokens"))
    return PoolState(
        num_slots=num_slots,
        num_used=num_slots - int(total(page, "kv_available_tokens")),
        num_evicted=int(total(page, "evicted_tokens_total")),
        num_retracted=int(total(page, "num_retracted_requests_total")),
        num_queued=int(total(page, "per_stage_req_latency_seconds_count", label='stage="request_process"')),
    )


def decode_throughputs(log: str, batch: int) -> list[float]:
    """Tokens per second of each line on decoding in which so many requests ran."""
    return [float(found["throughput"]) for found in _DECODE.finditer(log) if int(found["running"]) == batch]


def engine_ms_per_step(log: str, batch: int) -> float | None:
    """Mean milliseconds of a decode step by the engine's own counters; None without a whole interval.

    The first line is left out: its interval began before the batch had this size.
    """
    whole = decode_throughputs(log, batch)[1:]
    return fmean(1000 * batch / throughput for throughput in whole) if whole else None


def num_retracted(log: str) -> int:
    """Requests that the log says were put back."""
    return sum(int(count) for count in _RETRACT.findall(log))
