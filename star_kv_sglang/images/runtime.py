"""The store of this process, the thread that fills it and its metrics, each made when it is first asked for."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cache

from star_kv_sglang.images import telemetry
from star_kv_sglang.images.references import References
from star_kv_sglang.images.store import FeatureStore


@cache
def store() -> FeatureStore:
    """The process's store of features."""
    return FeatureStore()


@cache
def references() -> References:
    """What this process knows of references to screenshots."""
    return References()


@cache
def worker() -> ThreadPoolExecutor:
    """A thread for what would block the event loop. One: SGLang's processors are called from one thread at a time."""
    return ThreadPoolExecutor(1, thread_name_prefix="star-kv-images")


def report(cache_numbers: Mapping[str, int]) -> dict[str, int]:
    """What became of screenshots in this process.

    Args:
        cache_numbers: What SGLang's cache of processed images says of itself.
    """
    return telemetry.report(cache_numbers, store().counters, references().counters)


@cache
def publisher(model_name: str) -> telemetry.ImagePublisher:
    """The process's metrics; asked for only where SGLang's are on."""
    return telemetry.ImagePublisher(model_name)
