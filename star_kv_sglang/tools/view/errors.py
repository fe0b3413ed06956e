"""What a user of the viewer is told."""

from __future__ import annotations

from star_kv_sglang.errors import StarKVError


class ViewError(StarKVError, ValueError):
    """The viewer cannot show this; the message says what, why, and what to do."""
