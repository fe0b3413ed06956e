"""How much of what the vision tower gave is kept."""

from __future__ import annotations

import pytest

from star_kv_sglang.images.embeddings import embedding_cache_mb

WIDTH, ITEMSIZE = 3584, 2
"""Of Qwen2.5-VL-7B."""


@pytest.mark.parametrize(
    ("branches", "memory_mb", "mb"),
    [
        pytest.param(8, 80_000, 148, id="a screenshot of 19 MB for each branch in flight"),
        pytest.param(1, 80_000, 100, id="no less than SGLang's"),
        pytest.param(None, 80_000, 312, id="as many as 1/256 of the memory holds"),
        pytest.param(64, 24_000, 100, id="a small GPU"),
    ],
)
def test_size(branches: int | None, memory_mb: float, mb: int) -> None:
    assert embedding_cache_mb(WIDTH, ITEMSIZE, branches=branches, memory_mb=memory_mb) == mb
