"""From a widget at a time to whole conversations: which layouts a step may have, and when the next stage begins."""

from __future__ import annotations

from dataclasses import dataclass

from tinygui.training.batch import Mix
from tinygui.training.evaluate import Tally
from tinygui.training.layout import LayoutSpec
from tinygui.training.sizes import GRID

SINGLE = Mix(click=0.5, read=0.5, recall=0.0, read_back=0.0)
SEVERAL = Mix()


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage.

    Attributes:
        name: For the log.
        cycle: Layout, sequences a step and questions of each step, in turn.
        goals: Shares of right answers that end the stage.
        latest: Share of the time after which it ends anyway.
    """

    name: str
    cycle: tuple[tuple[LayoutSpec, int, Mix], ...]
    goals: tuple[tuple[str, float], ...]
    latest: float

    def is_over(self, tally: Tally, share: float) -> bool:
        """Whether the goals are met, or the time is over."""
        return share >= self.latest or all(tally.share(name) >= goal for name, goal in self.goals)


def _single(questions: int, window: tuple[int, int] = GRID) -> LayoutSpec:
    return LayoutSpec(1, 1, (questions - 1,), (), window)


_TWO = LayoutSpec(2, 1, (3, 7), (0, 1))
_FOUR = LayoutSpec(4, 1, (2, 3, 4, 7), (0, 1, 0, 1))
_SIX = LayoutSpec(6, 1, (1, 2, 3, 4, 5, 9), (0, 1, 0, 1, 0, 1))
_THREE_TWICE = LayoutSpec(3, 2, (1, 3, 5), (0, 0, 1))

STAGES = (
    Stage("one widget", ((_single(2, (3, 4)), 512, SINGLE),), (("read", 0.9), ("click", 0.9)), 0.3),
    Stage("a part of the screen", ((_single(8, (5, 8)), 96, SINGLE),), (("read", 0.9), ("click", 0.9)), 0.38),
    Stage("one screen", ((_single(10), 40, SINGLE),), (("read", 0.92), ("click", 0.92)), 0.48),
    Stage("two screens", ((_TWO, 24, SEVERAL), (_single(10), 40, SINGLE)), (("recall", 0.8),), 0.62),
    Stage(
        "conversations",
        (
            (_SIX, 10, SEVERAL),
            (_FOUR, 14, SEVERAL),
            (_SIX, 10, SEVERAL),
            (_THREE_TWICE, 16, SEVERAL),
            (_SIX, 10, SEVERAL),
            (_single(10), 40, SINGLE),
        ),
        (),
        1.0,
    ),
)
