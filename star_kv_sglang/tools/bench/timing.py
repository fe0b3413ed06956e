"""Times on a GPU: CUDA graphs over several copies of the data, so that neither launches nor a warm cache flatter."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

CACHE_BYTES = 192 * 2**20  # several times the L2 cache of an H100
REPLAYS = 25


@dataclass(frozen=True)
class Percentiles:
    """Microseconds of one call."""

    p20: float
    p50: float
    p80: float


def copies_needed(bytes_per_call: int, limit: int = 32) -> int:
    """Copies of the data that one call after the other walks through, so that it comes from memory."""
    return max(1, min(limit, math.ceil(CACHE_BYTES / max(bytes_per_call, 1))))


def time_calls(calls: Sequence[Callable[[], object]]) -> Percentiles:
    """Time of one of `calls`, which run one after the other in one CUDA graph."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for call in calls:
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    for _ in range(3):
        graph.replay()
    times = []
    for _ in range(REPLAYS):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) * 1e3 / len(calls))
    return percentiles(times)


def time_eager(call: Callable[[], object], repeats: int = 5) -> Percentiles:
    """Time of a call that cannot be captured, between events, host work included."""
    call()
    times = []
    for _ in range(repeats):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        begin.record()
        call()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) * 1e3)
    return percentiles(times)


def percentiles(times: Sequence[float]) -> Percentiles:
    """20th, 50th and 80th percentile."""
    ordered = sorted(times)
    p20, p50, p80 = (ordered[round(q * (len(ordered) - 1))] for q in (0.2, 0.5, 0.8))
    return Percentiles(p20, p50, p80)


def copy_bandwidth() -> float:
    """Bytes per second of the faster of two large device-to-device copies, read and written bytes counted."""
    source = torch.rand(2**28, device="cuda")
    target = torch.empty_like(source)
    copies: list[Callable[[], object]] = [lambda: target.copy_(source), lambda: torch.mul(source, 1.0, out=target)]
    fastest = min(time_calls([copy] * 4).p50 for copy in copies)
    return 2 * source.numel() * source.element_size() / (fastest * 1e-6)
