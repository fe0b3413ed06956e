"""Screens, widgets and transitions of the small GUI world.

A screen is 448 x 288 px: a background of page, toolbar, sidebar, cards and text lines, and 6 to 12 lettered, coloured
widgets that do not touch. From one screen to the next most widgets stay where they are, some move, the rest is new,
as in a real application. Everything follows from the `random.Random` handed in, and draws only on its ``random()``
and integer methods, whose streams are the same on every platform.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Protocol

from star_kv_sglang.tools.rollout.trajectory import Box

COLOURS = ("red", "blue", "green", "orange", "purple", "gray", "teal", "pink")
LETTERS = tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
STYLES = ("filled", "outlined", "pale")
FONT_SIZES = (22, 26, 30)

Rgb = tuple[int, int, int]

PAGE_COLOURS: tuple[Rgb, ...] = (
    (250, 250, 250),
    (226, 232, 240),
    (240, 243, 247),
    (247, 243, 233),
    (52, 56, 66),
    (34, 38, 44),
)
BAR_COLOURS: tuple[Rgb, ...] = ((200, 206, 216), (232, 236, 228), (214, 220, 228), (70, 76, 88))
CARD_COLOURS: tuple[Rgb, ...] = ((255, 255, 255), (236, 236, 240), (60, 66, 76))
LINE_COLOURS: tuple[Rgb, ...] = ((104, 110, 120), (150, 156, 164), (190, 194, 200))

SMALLEST = (160, 96)
"""Smallest screen, width and height in pixels, that has room for every panel."""

_GRID = 8
_PLACEMENT_TRIES = 400


class Labelled(Protocol):
    """A widget of any world: what questions are about."""

    @property
    def box(self) -> Box:
        """Where it is, in pixels."""

    @property
    def colour(self) -> str:
        """One of `COLOURS`."""

    @property
    def letter(self) -> str:
        """One of `LETTERS`."""

    @property
    def label(self) -> tuple[str, str]:
        """Colour and letter: unique on a screen."""


class Shown(Protocol):
    """A screen of any world."""

    @property
    def width(self) -> int:
        """Pixels."""

    @property
    def height(self) -> int:
        """Pixels."""

    @property
    def widgets(self) -> Sequence[Labelled]:
        """What stands on it."""


@dataclass(frozen=True, slots=True)
class Widget:
    """A labelled box: one of `COLOURS`, `LETTERS`, `STYLES` and `FONT_SIZES` each."""

    box: Box
    colour: str
    letter: str
    style: str
    font_size: int

    @property
    def label(self) -> tuple[str, str]:
        """Colour and letter: unique on a screen."""
        return self.colour, self.letter


@dataclass(frozen=True, slots=True)
class Panel:
    """A plain rectangle of the background."""

    box: Box
    colour: Rgb


@dataclass(frozen=True, slots=True)
class Background:
    """The page's colour and the panels on it, painted in order."""

    page: Rgb
    panels: tuple[Panel, ...]


@dataclass(frozen=True, slots=True)
class Screen:
    """One screen before it is drawn."""

    width: int
    height: int
    background: Background
    widgets: tuple[Widget, ...]


@dataclass(frozen=True, slots=True)
class WorldConfig:
    """How screens look and change.

    Attributes:
        width, height: pixels, at least 160 x 96; multiples of 32 keep the model's visual grid free of resizing.
        num_widgets: fewest and most widgets a screen is filled up to.
        widget_width, widget_height: smallest and largest size in pixels.
        margin, gap: free pixels to the screen's edge and between widgets.
        stay: probability that a widget stays as it is on the next screen.
        move: probability that one that does not stay is found elsewhere; otherwise it is gone.
        background_stays: probability that the next screen has the same background.
        distractors: probability that a new widget shares its colour or its letter with one on the screen.
    """

    width: int = 448
    height: int = 288
    num_widgets: tuple[int, int] = (6, 12)
    widget_width: tuple[int, int] = (32, 72)
    widget_height: tuple[int, int] = (28, 44)
    margin: int = 2
    gap: int = 3
    stay: float = 0.6
    move: float = 1 / 3
    background_stays: float = 0.6
    distractors: float = 0.55

    def __post_init__(self) -> None:
        if self.width < SMALLEST[0] or self.height < SMALLEST[1]:
            raise ValueError(f"a screen of {self.width} x {self.height} is smaller than {SMALLEST[0]} x {SMALLEST[1]}")
        for name in ("num_widgets", "widget_width", "widget_height"):
            low, high = getattr(self, name)
            if not 1 <= low <= high:
                raise ValueError(f"{name} must be (fewest, most) with 1 <= fewest <= most, not {(low, high)}")
        for name in ("stay", "move", "background_stays", "distractors"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be a probability, not {getattr(self, name)}")


DEFAULT_WORLD = WorldConfig()


def random_screen(rng: Random, config: WorldConfig = DEFAULT_WORLD) -> Screen:
    """A fresh screen."""
    return Screen(config.width, config.height, random_background(rng, config), _fill_up(rng, (), config))


def next_screen(rng: Random, screen: Screen, config: WorldConfig = DEFAULT_WORLD) -> Screen:
    """What the application shows after ``screen``: widgets that stay first, then those that moved, then new ones."""
    staying = [rng.random() < config.stay for _ in screen.widgets]
    widgets = tuple(widget for widget, stays in zip(screen.widgets, staying, strict=True) if stays)
    for widget, stays in zip(screen.widgets, staying, strict=True):
        if not stays and rng.random() < config.move:
            widgets += _placed(rng, widget.colour, widget.letter, widgets, config)
    same = rng.random() < config.background_stays
    background = screen.background if same else random_background(rng, config)
    return Screen(config.width, config.height, background, _fill_up(rng, widgets, config))


def random_background(rng: Random, config: WorldConfig = DEFAULT_WORLD) -> Background:
    """A page with sidebar and toolbar (each most of the time), up to four cards and up to eight text lines."""
    panels: list[Panel] = []
    bar_height = rng.choice((40, 48))
    if rng.random() < 0.75:
        panels.append(Panel((0, 0, config.width, bar_height), rng.choice(BAR_COLOURS)))
    if rng.random() < 0.6:
        width = _GRID * rng.randrange(6, 12)
        panels.append(Panel((0, 40, width, config.height - 40), rng.choice(BAR_COLOURS)))
    for _ in range(rng.randrange(5)):
        width, height = _GRID * rng.randrange(7, 19), _GRID * rng.randrange(4, 12)
        panels.append(Panel(_on_grid(rng, width, height, config), rng.choice(CARD_COLOURS)))
    for _ in range(rng.randrange(9)):
        width = _GRID * rng.randrange(3, 17)
        panels.append(Panel(_on_grid(rng, width, _GRID, config), rng.choice(LINE_COLOURS)))
    return Background(rng.choice(PAGE_COLOURS), tuple(panels))


def _on_grid(rng: Random, width: int, height: int, config: WorldConfig) -> Box:
    """A place below the toolbar for a panel of this size, on the 8-px grid; it may end at the screen's edge."""
    x = _GRID * rng.randrange((config.width - width) // _GRID + 1)
    y = _GRID * rng.randrange(5, (config.height - 2 * _GRID) // _GRID + 1)
    return x, y, width, min(height, config.height - y)


def _fill_up(rng: Random, widgets: tuple[Widget, ...], config: WorldConfig) -> tuple[Widget, ...]:
    for _ in range(rng.randint(*config.num_widgets) - len(widgets)):
        colour, letter = new_label(rng, widgets, config.distractors)
        widgets += _placed(rng, colour, letter, widgets, config)
    return widgets


def new_label(rng: Random, widgets: Sequence[Labelled], distractors: float) -> tuple[str, str]:
    """A colour and a letter that no widget of the screen has; often one of the two, as a distractor."""
    taken = {widget.label for widget in widgets}
    while True:
        colour, letter = rng.choice(COLOURS), rng.choice(LETTERS)
        if widgets and rng.random() < distractors:
            twin = rng.choice(widgets)
            if rng.random() < 0.5:
                colour = twin.colour
            else:
                letter = twin.letter
        if (colour, letter) not in taken:
            return colour, letter


def _placed(rng: Random, colour: str, letter: str, others: Iterable[Widget], config: WorldConfig) -> tuple[Widget, ...]:
    """The widget at a free place with a look of its own, as a 1-tuple; empty when the screen is too full for it."""
    boxes = [widget.box for widget in others]
    width, height = rng.randint(*config.widget_width), rng.randint(*config.widget_height)
    style, font_size = rng.choice(STYLES), rng.choice(FONT_SIZES)
    for _ in range(_PLACEMENT_TRIES):
        x = rng.randint(config.margin, config.width - config.margin - width)
        y = rng.randint(config.margin, config.height - config.margin - height)
        box = (x, y, width, height)
        if not any(_too_close(box, other, config.gap) for other in boxes):
            return (Widget(box, colour, letter, style, font_size),)
    return ()


def _too_close(one: Box, other: Box, gap: int) -> bool:
    apart_x = max(other[0] - (one[0] + one[2]), one[0] - (other[0] + other[2]))
    apart_y = max(other[1] - (one[1] + one[3]), one[1] - (other[1] + other[3]))
    return max(apart_x, apart_y) < gap
