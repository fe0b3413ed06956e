"""From a letter at a time to whole conversations: which layouts a step may have, and when the next stage begins."""

from __future__ import annotations

from dataclasses import dataclass

from tinygui.training.batch import WIDGETS, Mix, View
from tinygui.training.evaluate import Tally
from tinygui.training.layout import LayoutSpec
from tinygui.training.sizes import GRID

LETTERS = Mix(click=0.0, read=1.0, recall=0.0, read_back=0.0, first=0.0)
READING = Mix(click=0.0, read=1.0, recall=0.0, read_back=0.0)
PLACES = Mix(click=0.25, read=0.75, recall=0.0, read_back=0.0)
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
        view: Where windows are laid, and the share of the second world.
    """

    name: str
    cycle: tuple[tuple[LayoutSpec, int, Mix], ...]
    goals: tuple[tuple[str, float], ...]
    latest: float
    view: View = WIDGETS

    def is_over(self, tally: Tally, share: float) -> bool:
        """Whether the goals are met, or the time is over."""
        return share >= self.latest or all(tally.share(name) >= goal for name, goal in self.goals)


def _single(questions: int, window: tuple[int, int] = GRID) -> LayoutSpec:
    return LayoutSpec(1, 1, (questions - 1,), (), window)


_LETTER_PX = 30
_SQUARE = _single(2, (2, 2))
_WIDGET = ((_single(2, (3, 4)), 384, SINGLE),)
_PART = ((_single(12, (5, 8)), 96, SINGLE),)
_SINGLE = (_single(16), 40, SINGLE)
_TWO = LayoutSpec(2, 1, (5, 11), (0, 1))
_FOUR = LayoutSpec(4, 1, (2, 4, 6, 11), (0, 1, 0, 1))
_SIX = LayoutSpec(6, 1, (1, 3, 4, 5, 6, 13), (0, 1, 0, 1, 0, 1))
_THREE_TWICE = LayoutSpec(3, 2, (1, 4, 9), (0, 0, 1))

STAGES = (
    Stage("letters alone", ((_SQUARE, 512, LETTERS),), (("letter", 0.8),), 0.08, View(_LETTER_PX, 0.0, 0.0)),
    Stage("letters and colours", ((_SQUARE, 512, READING),), (("read", 0.8),), 0.1, View(_LETTER_PX, 0.3, 0.0)),
    Stage("and places", ((_SQUARE, 512, PLACES),), (("read", 0.8),), 0.13, View(_LETTER_PX, 0.6, 0.0)),
    Stage("letters anywhere", ((_SQUARE, 512, PLACES),), (("read", 0.85),), 0.17, View(_LETTER_PX, 1.0, 0.0)),
    Stage("a widget near the middle", _WIDGET, (("read", 0.8), ("click", 0.8)), 0.2, View(reach=0.3, pages=0.0)),
    Stage("a widget", _WIDGET, (("read", 0.9), ("click", 0.9)), 0.24, View(pages=0.0)),
    Stage("a widget of either world", _WIDGET, (("read", 0.85), ("click", 0.9)), 0.3),
    Stage("a part of the screen", _PART, (("read", 0.85), ("click", 0.88)), 0.38),
    Stage("one screen", (_SINGLE,), (("read", 0.9), ("click", 0.9)), 0.5),
    Stage("two screens", ((_TWO, 22, SEVERAL), _SINGLE), (("recall", 0.8),), 0.64),
    Stage(
        "conversations",
        (
            (_SIX, 10, SEVERAL),
            (_FOUR, 14, SEVERAL),
            (_SIX, 10, SEVERAL),
            (_THREE_TWICE, 16, SEVERAL),
            (_SIX, 10, SEVERAL),
            _SINGLE,
        ),
        (),
        1.0,
    ),
)
