"""What every measurement on an engine has in common."""

from __future__ import annotations

from typing import Final

POLICY_CONFIG: Final = {"pinned_share": 1.0}
"""Keys of ``--kv-policy-config``: histories that a measurement shares are pinned, whatever the size of the pool."""
