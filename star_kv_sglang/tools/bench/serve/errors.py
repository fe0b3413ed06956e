"""What the serving benchmark raises."""

from __future__ import annotations

from star_kv_sglang.errors import StarKVError


class ServeBenchError(StarKVError, RuntimeError):
    """The benchmark cannot go on; the message says which measurement, why, and what to do."""
