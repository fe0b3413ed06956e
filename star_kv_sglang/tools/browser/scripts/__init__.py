"""Scripts that play pages of MiniWoB++, by task."""

from __future__ import annotations

from typing import Final

from star_kv_sglang.tools.browser.scripts.choosing import CHOOSING
from star_kv_sglang.tools.browser.scripts.clicking import CLICKING
from star_kv_sglang.tools.browser.scripts.page import Script
from star_kv_sglang.tools.browser.scripts.typing import TYPING

SCRIPTS: Final[dict[str, Script]] = {**CLICKING, **CHOOSING, **TYPING}
"""All of them."""
