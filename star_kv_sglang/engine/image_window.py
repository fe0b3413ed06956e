"""A window over a prompt's screenshots: those before it keep no token, or a rest, and the prefix stays.

An agent that keeps the last N screenshots drops older ones from its prompt and with them every token behind the first
one that is missing: the prefix is another one. In a row with holes a dropped screenshot is one that keeps no token: its
positions stay, and so does everything behind it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from star_kv_sglang.cache.segments import Frame, Segment


@dataclass(frozen=True)
class ImageWindow:
    """A window.

    Attributes:
        size: Newest screenshots that it holds; None for all.
        rest: Share of the private screenshots outside of it, all together, that stays, in [0, 1).
    """

    size: int | None = None
    rest: float = 0.0

    def num_outside(self, frames: Sequence[Frame], segments: Sequence[Segment]) -> int:
        """How many of the segments, which are in order of position, belong to screenshots before the window.

        Args:
            frames: All screenshots of a prompt, oldest first.
            segments: Private segments of it.
        """
        if self.size is None or self.size >= len(frames):
            return 0
        start = frames[-self.size].start
        return sum(segment.frame.start < start for segment in segments)


WHOLE_HISTORY = ImageWindow()
"""All screenshots are in it."""
