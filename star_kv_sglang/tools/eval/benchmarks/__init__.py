"""The benchmarks that are known, by name."""

from __future__ import annotations

from star_kv_sglang.tools.eval.benchmarks.agentnetbench import AgentNetBench
from star_kv_sglang.tools.eval.benchmarks.android_control import AndroidControlHigh, AndroidControlLow
from star_kv_sglang.tools.eval.benchmarks.base import Benchmark
from star_kv_sglang.tools.eval.benchmarks.screenspot import ScreenSpotPro, ScreenSpotV2
from star_kv_sglang.tools.eval.errors import EvalError

BENCHMARKS: dict[str, Benchmark] = {}


def register_benchmark(benchmark: Benchmark) -> None:
    """Makes a benchmark known to ``star-kv eval run``; a later one of the same name replaces the earlier."""
    BENCHMARKS[benchmark.name] = benchmark


def get_benchmark(name: str) -> Benchmark:
    """The benchmark of a name.

    Raises:
        EvalError: there is none; the message lists those that exist.
    """
    if name not in BENCHMARKS:
        raise EvalError(f"the benchmark {name!r} does not exist; choose one of {', '.join(sorted(BENCHMARKS))}")
    return BENCHMARKS[name]


for _benchmark in (ScreenSpotV2(), ScreenSpotPro(), AndroidControlHigh(), AndroidControlLow(), AgentNetBench()):
    register_benchmark(_benchmark)
