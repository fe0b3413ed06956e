"""The store of this process, the thread that fills it and its metrics, each made when it is first asked for."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import cache

from star_kv_sglang.images.references import References
from star_kv_sglang.images.store import FeatureStore
from star_kv_sglang.images.telemetry import ImagePublisher


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


@cache
def publisher(model_name: str) -> ImagePublisher:
    """The process's metrics; asked for only where SGLang's are on."""
    return ImagePublisher(model_name)
