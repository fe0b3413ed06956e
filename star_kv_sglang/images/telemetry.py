"""The image cache's numbers as Prometheus metrics of the process that answers clients."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict

from star_kv_sglang.images.references import ReferenceCounters
from star_kv_sglang.images.store import FeatureCounters

PREFIX = "star_kv:image_"
CACHE_COUNTERS = {
    "cache_hits": "Screenshots that were known: neither decoded nor processed.",
    "cache_misses": "Screenshots that were processed.",
    "cache_joins": "Screenshots that another request was processing at that moment.",
    "cache_evictions": "Processed screenshots that made room for others.",
}
GAUGES = {
    "cache_bytes": "Bytes of processed screenshots that are kept.",
    "saved_ms": "Milliseconds that known screenshots would have taken, had they been processed again.",
}
FEATURE_COUNTERS = {
    "features_moved": "Screenshots whose features moved into shared memory, each once.",
    "features_not_moved": "Screenshots for which there was no memory; their features are copied with every request.",
    "features_sent": "Features that a request needed and did not carry.",
    "features_unsent_bytes": "Bytes that these would have been.",
    "features_processed": "Screenshots that were processed and moved.",
    "features_processing_ms": "Milliseconds that this took.",
}
REFERENCE_COUNTERS = {
    "references_hits": "Screenshots that a request named by their digest, and that were known.",
    "references_unknown": "Screenshots that a request named by their digest, and whose bytes were asked for.",
}


def report(cache: Mapping[str, int], features: FeatureCounters, references: ReferenceCounters) -> dict[str, int]:
    """All numbers of this process, by the names of their metrics without prefix and suffix.

    Args:
        cache: What SGLang's cache of processed images says of itself.
        features: What the store counted since the start.
        references: What became of references since the start.
    """
    return {
        "cache_hits": cache["hits"],
        "cache_misses": cache["misses"],
        "cache_joins": cache["singleflight_joins"],
        "cache_evictions": cache["evictions"],
        "cache_bytes": cache["size_bytes"],
        "saved_ms": features.saved_ms(cache["hits"]),
        **{f"features_{name.removeprefix('num_')}": value for name, value in asdict(features).items()},
        **{f"references_{name.removeprefix('num_')}": value for name, value in asdict(references).items()},
    }


class ImagePublisher:
    """Collectors of one process. Make it only where SGLang's metrics are on.

    Args:
        model_name: As SGLang's own metrics call the model.
    """

    def __init__(self, model_name: str) -> None:
        # SGLang sets the directory of the multiprocess mode before; the library reads it when it is imported.
        from prometheus_client import Counter, Gauge

        texts = {**CACHE_COUNTERS, **FEATURE_COUNTERS, **REFERENCE_COUNTERS}
        self._counters = {
            name: Counter(f"{PREFIX}{name}_total", text, ["model_name"]).labels(model_name)
            for name, text in texts.items()
        }
        self._gauges = {
            name: Gauge(PREFIX + name, text, ["model_name"], multiprocess_mode="livesum").labels(model_name)
            for name, text in GAUGES.items()
        }
        self._told = dict.fromkeys(texts, 0)

    def publish(self, numbers: Mapping[str, int]) -> None:
        """Bring all collectors up to date.

        Args:
            numbers: The process's report.
        """
        for name, counter in self._counters.items():
            counter.inc(numbers[name] - self._told[name])
            self._told[name] = numbers[name]
        for name, gauge in self._gauges.items():
            gauge.set(numbers[name])
