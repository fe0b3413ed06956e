"""How much of what the vision tower gave is kept on the GPU, so that it runs once for each screenshot."""

from __future__ import annotations

_SCREEN_TOKENS = 2_691
"""Of a screenshot of 1920 x 1080, with 28 x 28 pixels a token."""
_BRANCHES = 32
"""In flight, where nobody bounds them."""
_SHARE_OF_MEMORY = 256
"""This part of the GPU's memory is taken at most: the pool is smaller by it."""
_LEAST_MB = 100
"""SGLang's own size."""


def embedding_cache_mb(width: int, itemsize: int, *, branches: int | None, memory_mb: float) -> int:
    """MiB that hold the newest screenshot of each branch in flight, as far as the GPU's memory allows.

    Args:
        width: Values of a token as the vision tower gives it.
        itemsize: Bytes of a value.
        branches: Requests that run at the same time; None: not bounded.
        memory_mb: Of the GPU, MiB.
    """
    screenshot = _SCREEN_TOKENS * width * itemsize
    wanted = -(-(branches or _BRANCHES) * screenshot // 2**20)
    return max(_LEAST_MB, min(wanted, int(memory_mb) // _SHARE_OF_MEMORY))
