"""The policy's numbers as Prometheus metrics of the scheduler process.

SGLang runs Prometheus in its multiprocess mode: what a process writes to its own collectors appears on the page that
the HTTP server renders. Labels are those of SGLang's scheduler metrics; nothing of a request is ever a label.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

PREFIX = "star_kv:"
GAUGES = {
    "live_tokens": "KV slots that the radix tree holds.",
    "shared_tokens": "KV slots of nodes that several branches can use.",
    "private_tokens": "KV slots of all other nodes.",
    "peak_private_tokens": "Most private KV slots when a forward pass began.",
}
SECONDS = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0)
FRACTIONS = (0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 0.99, 1.0)


def counter_name(number: str) -> str:
    """Metric of a counter of the policy's report: ``num_prunes`` is ``star_kv:prunes_total``."""
    return f"{PREFIX}{number.removeprefix('num_')}_total"


class Publisher:
    """Collectors of one scheduler process. Make it only where SGLang's metrics are on.

    Args:
        labels: Names and values, the same for every metric.
        counters: Names of the counters in the policy's report.
    """

    def __init__(self, labels: Mapping[str, object], counters: Iterable[str]) -> None:
        # SGLang sets the directory of the multiprocess mode before; the library reads it when it is imported.
        from prometheus_client import Counter, Gauge, Histogram

        names, values = list(labels), [str(value) for value in labels.values()]
        self._gauges = {
            name: Gauge(PREFIX + name, text, names, multiprocess_mode="mostrecent").labels(*values)
            for name, text in GAUGES.items()
        }
        self._counters = {
            name: Counter(
                counter_name(name), name.removeprefix("num_").replace("_", " ").capitalize() + ".", names
            ).labels(*values)
            for name in counters
        }
        self._told = dict.fromkeys(self._counters, 0)
        self._kept = Histogram(
            PREFIX + "kept_fraction",
            "Share of a screenshot's tokens that a prompt leaves in the KV cache, by the screenshots that came after.",
            [*names, "age"],
            buckets=FRACTIONS,
        )
        self._stages = Histogram(
            PREFIX + "stage_seconds", "Time of each stage of the policy.", [*names, "stage"], buckets=SECONDS
        )
        self._values = values

    def publish(
        self, gauges: Mapping[str, int], counters: Mapping[str, int], kept: Iterable[tuple[str, float]]
    ) -> None:
        """Bring all collectors up to date.

        Args:
            gauges: A value for each of :data:`GAUGES`.
            counters: Values since the start.
            kept: Age and kept share of each screenshot since the last call.
        """
        for name, gauge in self._gauges.items():
            gauge.set(gauges[name])
        for name, counter in self._counters.items():
            if counters[name] != self._told[name]:
                counter.inc(counters[name] - self._told[name])
                self._told[name] = counters[name]
        for age, fraction in kept:
            self._kept.labels(*self._values, age).observe(fraction)

    def observe_stage(self, stage: str, seconds: float) -> None:
        """One range of a stage is over."""
        self._stages.labels(*self._values, stage).observe(seconds)
