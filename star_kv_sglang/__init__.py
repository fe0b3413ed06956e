"""STaR-KV as a KV-cache policy of SGLang. Importing this package has no side effects."""

from __future__ import annotations

__version__ = "0.2.0"
