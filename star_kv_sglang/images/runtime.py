"""The store of this process: one, made when it is first asked for."""

from __future__ import annotations

from functools import cache

from star_kv_sglang.images.store import FeatureStore


@cache
def store() -> FeatureStore:
    """The process's store of features."""
    return FeatureStore()
