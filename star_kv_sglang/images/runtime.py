"""The store of this process and the thread that fills it: one of each, made when it is first asked for."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import cache

from star_kv_sglang.images.store import FeatureStore


@cache
def store() -> FeatureStore:
    """The process's store of features."""
    return FeatureStore()


@cache
def worker() -> ThreadPoolExecutor:
    """A thread for what would block the event loop. One: SGLang's processors are called from one thread at a time."""
    return ThreadPoolExecutor(1, thread_name_prefix="star-kv-images")
