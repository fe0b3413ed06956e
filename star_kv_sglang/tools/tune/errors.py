"""What tuning raises."""

from __future__ import annotations

from star_kv_sglang.errors import StarKVError


class TuneError(StarKVError):
    """Base of the errors of `star-kv tune`."""


class RecordingError(TuneError, ValueError):
    """A recording cannot be replayed; the message names the file and the place, why, and what to do."""


class ReplayError(TuneError, RuntimeError):
    """A replay cannot go on; what is done is kept."""
