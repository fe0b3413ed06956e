"""What a rollout raises."""

from __future__ import annotations

from star_kv_sglang.errors import StarKVError


class RolloutError(StarKVError, RuntimeError):
    """The server did not do what the rollout needs; the message says which request, why, and what to do."""


def first_error(errors: BaseExceptionGroup[StarKVError]) -> StarKVError:
    """One of a task group's errors; branches that lose the same server all say the same."""
    error = errors.exceptions[0]
    return first_error(error) if isinstance(error, BaseExceptionGroup) else error
