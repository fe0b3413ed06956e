"""Shapes that the measurements run on."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class OpShape:
    """A model and one turn of one branch.

    layers, heads, groups, head_dim, hidden: of the model. frame_rows, frame_cols: visual tokens of a screenshot.
    frames: screenshots in the prompt; text_tokens: the rest of it. window: observing queries.
    keep: share of the earlier screenshots that survives.
    """

    name: str
    layers: int
    heads: int
    groups: int
    head_dim: int
    hidden: int
    frame_rows: int
    frame_cols: int
    frames: int
    text_tokens: int
    window: int = 8
    keep: float = 0.2

    @property
    def frame_tokens(self) -> int:
        """Visual tokens of one screenshot."""
        return self.frame_rows * self.frame_cols

    @property
    def num_live(self) -> int:
        """Live tokens of the prompt."""
        return self.frames * self.frame_tokens + self.text_tokens

    @property
    def frame_starts(self) -> list[int]:
        """First live index of each screenshot; text stands between them."""
        gap = self.text_tokens // (self.frames + 1)
        return [gap + i * (self.frame_tokens + gap) for i in range(self.frames)]


SHAPES = {
    shape.name: shape
    for shape in (
        OpShape("qwen2.5-vl-7b", 28, 28, 4, 128, 3584, frame_rows=39, frame_cols=69, frames=5, text_tokens=55),
        OpShape("tiny", 2, 4, 2, 64, 128, frame_rows=6, frame_cols=9, frames=3, text_tokens=20),
    )
}
