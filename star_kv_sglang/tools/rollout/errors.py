"""What a rollout raises."""

from __future__ import annotations

from star_kv_sglang.errors import StarKVError


class RolloutError(StarKVError, RuntimeError):
    """The server did not do what the rollout needs; the message says which request, why, and what to do."""
