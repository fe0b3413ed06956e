"""Page layouts: what a page shows besides its widgets, and where widgets may stand.

A page has a navigation bar, most of the time a side menu, and one of five kinds of content: a form, a table, cards, a
list, a picture with a tool row. Every part names slots; slots are apart from each other, so widgets are.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from star_kv_sglang.tools.rollout.trajectory import Box
from tinygui.pages.assets import NUM_TEXTURES, TEXTURE_SIZE, WORD_CELL, WORD_FACES, WORDS
from tinygui.world import Rgb

WIDTH, HEIGHT = 448, 288

_GAP = 4


@dataclass(frozen=True, slots=True)
class Theme:
    """Colours of a page: top and bottom of its background, of surfaces, of lines and of plain text; and its face."""

    top: Rgb
    bottom: Rgb
    surface: Rgb
    line: Rgb
    text: Rgb
    face: int
    radius: int


@dataclass(frozen=True, slots=True)
class Surface:
    """A rounded rectangle, with a shadow below or a border around it."""

    box: Box
    colour: Rgb
    radius: int
    shadow: bool = False
    border: Rgb | None = None


@dataclass(frozen=True, slots=True)
class Photo:
    """A cut-out of a texture."""

    box: Box
    texture: int
    offset: tuple[int, int]
    radius: int


@dataclass(frozen=True, slots=True)
class Words:
    """A word at a place; ``word``, ``face`` and ``size`` are indices into the assets."""

    place: tuple[int, int]
    word: int
    face: int
    size: int
    colour: Rgb


Decor = Surface | Photo | Words


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a page: decor in painting order, and the slots for widgets."""

    decor: tuple[Decor, ...]
    slots: tuple[Box, ...]


@dataclass(frozen=True, slots=True)
class Layout:
    """Navigation bar, side menu and content."""

    theme: Theme
    nav: Part
    side: Part
    content: Part

    @property
    def parts(self) -> tuple[Part, Part, Part]:
        """In painting order."""
        return self.content, self.side, self.nav

    @property
    def slots(self) -> tuple[Box, ...]:
        """All slots."""
        return self.nav.slots + self.side.slots + self.content.slots


class _Builder:
    """Collects a part."""

    def __init__(self, rng: Random, theme: Theme) -> None:
        self.rng, self.theme = rng, theme
        self.decor: list[Decor] = []
        self.slots: list[Box] = []

    def part(self) -> Part:
        return Part(tuple(self.decor), tuple(self.slots))

    def slot(self, x: int, y: int, width: int, height: int) -> None:
        """Free room for one widget; too little room makes no slot."""
        width, height = min(width, 104), min(height, 46)
        if width >= 36 and height >= 32:
            self.slots.append((x, y, width, height))

    def surface(self, box: Box, *, shadow: bool = False, border: bool = False, colour: Rgb | None = None) -> None:
        line = self.theme.line if border else None
        self.decor.append(Surface(box, colour or self.theme.surface, self.theme.radius, shadow, line))

    def photo(self, box: Box, radius: int | None = None) -> None:
        room = TEXTURE_SIZE - box[2], TEXTURE_SIZE - box[3]
        offset = self.rng.randrange(max(room[0], 0) + 1), self.rng.randrange(max(room[1], 0) + 1)
        rounded = self.theme.radius if radius is None else radius
        self.decor.append(Photo(box, self.rng.randrange(NUM_TEXTURES), offset, rounded))

    def words(self, x: int, y: int, count: int = 1, size: int = 0, room: int = WIDTH) -> None:
        """Up to ``count`` words side by side, as far as there is room."""
        for _ in range(count):
            if room < WORD_CELL[0]:
                break
            word = self.rng.randrange(len(WORDS))
            self.decor.append(Words((x, y), word, self.theme.face, size, self.theme.text))
            step = 12 + 6 * len(WORDS[word])
            x, room = x + step, room - step


def random_theme(rng: Random) -> Theme:
    """Light three times of four."""
    dark = rng.random() < 0.25
    tint = [rng.randrange(-8, 9) for _ in range(3)]
    base, other, surface, line, text = (30, 52, 46, 78, 176) if dark else (246, 224, 253, 206, 92)
    return Theme(
        _tinted(base, tint), _tinted(other, tint), _tinted(surface, [value // 2 for value in tint]),
        _tinted(line, tint), _tinted(text, tint), rng.randrange(len(WORD_FACES)), rng.choice((2, 6, 10)),
    )  # fmt: skip


def _tinted(level: int, tint: list[int]) -> Rgb:
    red, green, blue = (min(max(level + value, 0), 255) for value in tint)
    return red, green, blue


def random_layout(rng: Random) -> Layout:
    """A page from nothing."""
    theme = random_theme(rng)
    nav = _nav(rng, theme)
    side = _side(rng, theme, _bottom(nav))
    return Layout(theme, nav, side, _content(rng, theme, nav, side))


def next_layout(rng: Random, layout: Layout) -> Layout:
    """Other content under the same navigation bar, beside the same side menu four times of five."""
    side = layout.side if rng.random() < 0.8 else _side(rng, layout.theme, _bottom(layout.nav))
    return Layout(layout.theme, layout.nav, side, _content(rng, layout.theme, layout.nav, side))


def _bottom(nav: Part) -> int:
    bar = nav.decor[0]
    return bar.box[1] + bar.box[3] if isinstance(bar, Surface) else 0


def _nav(rng: Random, theme: Theme) -> Part:
    made = _Builder(rng, theme)
    height = rng.randrange(38, 49)
    made.decor.append(Surface((0, 0, WIDTH, height), theme.surface, 0, shadow=True))
    made.photo((8, (height - 22) // 2, 22, 22), radius=rng.choice((3, 11)))
    made.words(38, (height - 14) // 2, size=1)
    places = rng.randrange(3, 6)
    width = 330 // places
    for index in range(places):
        x = 112 + index * width
        made.slot(x, 3, width - _GAP, height - 6)
        if rng.random() < 0.3:
            made.words(x + 4, height - 15, room=width)
    return made.part()


def _side(rng: Random, theme: Theme, top: int) -> Part:
    made = _Builder(rng, theme)
    if rng.random() < 0.3:
        return made.part()
    width = rng.randrange(76, 109)
    made.surface((0, top + 2, width, HEIGHT - top - 2), border=True)
    step = rng.randrange(36, 50)
    for y in range(top + 6, HEIGHT - step, step):
        made.slot(4, y, width - 8, step - _GAP)
        if rng.random() < 0.4:
            made.decor.append(Surface((6, y + step - _GAP, width - 12, 1), theme.line, 0))
    return made.part()


def _content(rng: Random, theme: Theme, nav: Part, side: Part) -> Part:
    made = _Builder(rng, theme)
    bar = side.decor[0] if side.decor else None
    left = bar.box[2] + 8 if isinstance(bar, Surface) else 8
    top = _bottom(nav) + 8
    kind = rng.choice((_form, _table, _cards, _list, _picture))
    kind(made, left, top, WIDTH - left - 8, HEIGHT - top - 6)
    return made.part()


def _form(made: _Builder, x: int, y: int, width: int, height: int) -> None:
    """Labels, input fields with a widget to the right, and a row of buttons."""
    made.surface((x, y, width, height), shadow=True)
    made.words(x + 8, y + 4, 2, 1, width)
    field, step = width * made.rng.randrange(40, 60) // 100, made.rng.randrange(42, 52)
    for row in range(y + 22, y + height - 2 * step + 8, step):
        made.words(x + 8, row, room=field)
        made.surface((x + 8, row + 14, field - 16, 22), border=True)
        made.words(x + 14, row + 17, made.rng.randrange(3), room=field - 30)
        half = (width - field) // 2
        made.slot(x + field, row + 2, half - _GAP, step - _GAP)
        made.slot(x + field + half, row + 2, half - _GAP, step - _GAP)
    for index in range(width // 84):
        made.slot(x + 6 + index * 84, y + height - 42, 78, 38)


def _table(made: _Builder, x: int, y: int, width: int, height: int) -> None:
    """A head and rows of words, widgets in two of the columns."""
    columns, step = max(width // 96, 2), made.rng.randrange(36, 44)
    cell = width // columns
    made.surface((x, y, width, height), border=True)
    made.decor.append(Surface((x, y, width, 18), made.theme.line, 0))
    filled = made.rng.sample(range(columns), 2)
    for column in range(columns):
        made.words(x + column * cell + 6, y + 2, room=cell)
    for index, row in enumerate(range(y + 20, y + height - step + 4, step)):
        if index % 2:
            made.decor.append(Surface((x + 1, row, width - 2, step), made.theme.bottom, 0))
        for column in range(columns):
            left = x + column * cell
            if column in filled:
                made.slot(left + 3, row + 1, cell - 8, step - _GAP)
            else:
                made.words(left + 6, row + step // 2 - 8, room=cell, size=made.rng.randrange(2))


def _cards(made: _Builder, x: int, y: int, width: int, height: int) -> None:
    """Cards with a photo on top, a word, and widgets below."""
    columns, rows = max(width // made.rng.choice((110, 144)), 1), 2
    card_width, card_height = width // columns, height // rows
    for index in range(columns * rows):
        left, top = x + index % columns * card_width, y + index // columns * card_height
        inner, photo = card_width - 8, card_height - made.rng.randrange(50, 62)
        made.surface((left, top, inner, card_height - 8), shadow=True)
        made.photo((left, top, inner, photo))
        made.words(left + 5, top + photo, room=inner)
        half = inner // 2 if inner >= 88 else inner
        made.slot(left + 4, top + photo + 13, half - 8, card_height - photo - 23)
        if half < inner:
            made.slot(left + half + 2, top + photo + 13, half - 8, card_height - photo - 23)


def _list(made: _Builder, x: int, y: int, width: int, height: int) -> None:
    """Rows with a round photo, words and widgets at the end."""
    step = made.rng.randrange(40, 52)
    slots = made.rng.randrange(2, 4)
    made.surface((x, y, width, height), shadow=True)
    for row in range(y + 2, y + height - step + 2, step):
        made.photo((x + 6, row + (step - 28) // 2, 28, 28), radius=14)
        room = width - 44 - slots * 68
        made.words(x + 40, row + step // 2 - 14, 2, 1, room)
        made.words(x + 40, row + step // 2, 3, 0, room)
        made.decor.append(Surface((x + 6, row + step - 2, width - 12, 1), made.theme.line, 0))
        for index in range(slots):
            made.slot(x + width - (index + 1) * 68, row + 1, 64, step - _GAP - 1)


def _picture(made: _Builder, x: int, y: int, width: int, height: int) -> None:
    """A large photo with widgets on it, and a tool row."""
    photo = height - made.rng.randrange(52, 66)
    for left in range(x, x + width, 200):
        made.photo((left, y, min(200, x + width - left), photo), radius=0)
    columns = width // 76
    for row in range(y + 8, y + photo - 44, 54):
        for column in range(columns):
            if made.rng.random() < 0.6:
                made.slot(x + 4 + column * 76, row, 70, 44)
    made.surface((x, y + photo + 4, width, height - photo - 4), shadow=True)
    made.words(x + 6, y + photo + 5, 4, 0, width)
    for column in range(columns):
        made.slot(x + 4 + column * 76, y + photo + 18, 70, height - photo - 22)
