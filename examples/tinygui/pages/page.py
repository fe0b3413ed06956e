"""Pages with widgets, and what follows a page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from star_kv_sglang.tools.rollout.trajectory import Box
from tinygui.pages.assets import FACES, LETTER_SIZES
from tinygui.pages.layout import HEIGHT, WIDTH, Layout, next_layout, random_layout
from tinygui.world import new_label

KINDS = ("pill", "button", "icon", "link", "check", "tab", "tag")

FEWEST, MOST = 6, 12
STAY = 0.72
"""Of the widgets whose slot is still there; about 60% of all stay."""
MOVE = 1 / 3
SAME_LAYOUT = 0.6
DISTRACTORS = 0.55


@dataclass(frozen=True, slots=True)
class PageWidget:
    """A lettered, coloured control.

    Attributes:
        box: where it is drawn; every pixel counts as hit.
        kind: one of `KINDS`.
        shade: which of its colour's shades it has.
        face, size: indices of the letter's face and size.
    """

    box: Box
    colour: str
    letter: str
    kind: str
    shade: int
    face: int
    size: int

    @property
    def label(self) -> tuple[str, str]:
        """Colour and letter: unique on a page."""
        return self.colour, self.letter


@dataclass(frozen=True, slots=True)
class Page:
    """One screen before it is drawn.

    Attributes:
        grain: index of the noise over the page, and where it is cut out.
    """

    width: int
    height: int
    layout: Layout
    widgets: tuple[PageWidget, ...]
    grain: tuple[int, int, int]


def random_page(rng: Random) -> Page:
    """A fresh page."""
    layout = random_layout(rng)
    return Page(WIDTH, HEIGHT, layout, _fill_up(rng, layout, ()), _grain(rng))


def next_page(rng: Random, page: Page) -> Page:
    """What follows ``page``: widgets that stay first, then those that moved, then new ones."""
    layout = page.layout if rng.random() < SAME_LAYOUT else next_layout(rng, page.layout)
    staying = [rng.random() < STAY and _has_slot(layout, widget) for widget in page.widgets]
    widgets = tuple(widget for widget, stays in zip(page.widgets, staying, strict=True) if stays)
    for widget, stays in zip(page.widgets, staying, strict=True):
        if not stays and rng.random() < MOVE:
            widgets += _placed(rng, layout, widget.colour, widget.letter, widgets)
    return Page(WIDTH, HEIGHT, layout, _fill_up(rng, layout, widgets), page.grain)


def _grain(rng: Random) -> tuple[int, int, int]:
    return rng.randrange(8), rng.randrange(64), rng.randrange(64)


def _has_slot(layout: Layout, widget: PageWidget) -> bool:
    return any(_holds(slot, widget) for slot in layout.slots)


def _holds(slot: Box, widget: PageWidget) -> bool:
    x, y, width, height = widget.box
    return (
        slot[0] <= x and x + width <= slot[0] + slot[2] and slot[1] <= y and y + height <= slot[1] + slot[3]
    )  # fmt: skip


def _fill_up(rng: Random, layout: Layout, widgets: tuple[PageWidget, ...]) -> tuple[PageWidget, ...]:
    for _ in range(rng.randint(FEWEST, MOST) - len(widgets)):
        colour, letter = new_label(rng, widgets, DISTRACTORS)
        widgets += _placed(rng, layout, colour, letter, widgets)
    return widgets


def _placed(
    rng: Random, layout: Layout, colour: str, letter: str, others: Sequence[PageWidget]
) -> tuple[PageWidget, ...]:
    """The widget in a free slot with a look of its own, as a 1-tuple; empty when no slot is free."""
    free = [slot for slot in layout.slots if not any(_holds(slot, other) for other in others)]
    if not free:
        return ()
    slot = rng.choice(free)
    kind = rng.choice(KINDS)
    width, height = _size(rng, kind, slot)
    x = slot[0] + rng.randint(0, slot[2] - width)
    y = slot[1] + rng.randint(0, slot[3] - height)
    shade, face, size = rng.randrange(3), rng.randrange(len(FACES)), rng.randrange(len(LETTER_SIZES))
    return (PageWidget((x, y, width, height), colour, letter, kind, shade, face, size),)


def _size(rng: Random, kind: str, slot: Box) -> tuple[int, int]:
    height = rng.randint(28, min(40, slot[3]))
    if kind == "icon":
        side = min(max(height, 32), slot[2], slot[3])
        return side, side
    least = 48 if kind == "check" else 34
    return rng.randint(min(least, slot[2]), min(76, slot[2])), height
