"""Small screenshots, conversations and turns."""

from __future__ import annotations

import base64
import io
from typing import Any

from PIL import Image

from star_kv_sglang.tools.tune.records import CellTurn


def png(colour: str = "white", size: tuple[int, int] = (64, 48)) -> bytes:
    """A screenshot of one colour."""
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, format="PNG")
    return buffer.getvalue()


def data_url(content: bytes) -> str:
    """As messages carry it."""
    return "data:image/png;base64," + base64.b64encode(content).decode()


def user(text: str, *urls: str, **other: Any) -> dict[str, Any]:
    """What the user says, with screenshots."""
    shown = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return {"role": "user", "content": [*shown, {"type": "text", "text": text}], **other}


def assistant(text: str) -> dict[str, Any]:
    """What the model says."""
    return {"role": "assistant", "content": text}


def cell_turn(thread: str, turn: int, same: bool = True, **other: Any) -> CellTurn:
    """A replayed turn."""
    row: dict[str, Any] = {
        "thread": thread, "turn": turn, "scored": True, "screenshots": turn + 1, "ago": None, "text": "x1 y1",
        "same": same, "same_words": same, "kl": 0.0, "logprob": 0.0, "held": 50, "prompt": 100, **other,
    }  # fmt: skip
    return CellTurn(**row)
