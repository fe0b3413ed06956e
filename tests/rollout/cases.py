"""Trajectories small enough to follow by hand."""

from __future__ import annotations

import io

from PIL import Image

from star_kv_sglang.tools.rollout.trajectory import LabelledBox, Question, Trajectory, Turn

BOX = (16, 16, 32, 32)


def png(shade: int) -> bytes:
    """A picture of one colour, 32 x 32."""
    buffer = io.BytesIO()
    Image.new("RGB", (32, 32), (shade, shade, shade)).save(buffer, format="PNG")
    return buffer.getvalue()


def click(name: str) -> Question:
    return Question(f"click {name} here", "x4 y4", BOX, 0, False)


def turn(step: int, shade: int, *names: str) -> Turn:
    widgets = tuple(LabelledBox(BOX, *name.split()) for name in names)
    return Turn(f"step{step}", png(shade), tuple(click(name) for name in names), widgets)


def two_branches() -> list[Trajectory]:
    """Branches that share their first turn of two questions, and have two more turns each, of one question."""
    first = turn(1, 0, "red A", "red B")
    return [
        Trajectory(0, (first, turn(2, 10, "red C"), turn(3, 20, "red D"))),
        Trajectory(1, (first, turn(2, 30, "red E"), turn(3, 40, "red F"))),
    ]
