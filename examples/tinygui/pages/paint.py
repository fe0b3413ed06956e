"""Draws a page: gradients, shadows, textures, anti-aliased shapes and letters, and grain over everything."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from PIL import Image, ImageChops

from star_kv_sglang.tools.rollout.trajectory import Box
from tinygui.pages.assets import letter_mask, noise, rounded_mask, shadow_mask, texture, word_mask
from tinygui.pages.layout import Photo, Surface, Theme, Words
from tinygui.pages.page import Page, PageWidget
from tinygui.world import Rgb

SHADES: dict[str, tuple[Rgb, Rgb, Rgb]] = {
    "red": ((220, 38, 38), (185, 28, 28), (229, 57, 53)),
    "blue": ((37, 99, 235), (29, 78, 216), (66, 133, 244)),
    "green": ((22, 163, 74), (46, 125, 50), (67, 160, 71)),
    "orange": ((249, 115, 22), (245, 150, 30), (230, 126, 34)),
    "purple": ((124, 58, 237), (142, 36, 170), (106, 27, 154)),
    "gray": ((107, 114, 128), (117, 117, 117), (134, 142, 150)),
    "teal": ((13, 148, 136), (0, 172, 193), (20, 184, 166)),
    "pink": ((236, 72, 153), (244, 114, 182), (240, 98, 146)),
}
WHITE: Rgb = (255, 255, 255)
INK: Rgb = (40, 44, 52)
_SHADOW_COLOUR: Rgb = (20, 24, 32)


def render_page(page: Page) -> Image.Image:
    """The page's pixels, mode "RGB"."""
    image = _background(page.layout.theme, page.width, page.height).copy()
    for part in page.layout.parts:
        for piece in part.decor:
            _draw(image, piece)
    for widget in page.widgets:
        _DRAWERS[widget.kind](image, widget)
    index, x, y = page.grain
    grain = noise(index, page.width, page.height).crop((x, y, x + page.width, y + page.height))
    return ImageChops.add(image, grain, 1, -(index % 4 + 1))


@lru_cache(maxsize=256)
def _background(theme: Theme, width: int, height: int) -> Image.Image:
    return _gradient(theme.top, theme.bottom, width, height)


@lru_cache(maxsize=4096)
def _gradient(top: Rgb, bottom: Rgb, width: int, height: int) -> Image.Image:
    """From ``top`` to ``bottom``, in integers."""
    steps = np.arange(height, dtype=np.int64)[:, None]
    rows = np.array(top) + (np.array(bottom) - np.array(top)) * steps // max(height - 1, 1)
    pixels = np.broadcast_to(rows[:, None], (height, width, 3)).astype(np.uint8)
    return Image.fromarray(pixels)


def _draw(image: Image.Image, piece: Surface | Photo | Words) -> None:
    if isinstance(piece, Words):
        image.paste(piece.colour, piece.place, word_mask(piece.word, piece.face, piece.size))
        return
    x, y, width, height = piece.box
    if isinstance(piece, Photo):
        left, top = piece.offset
        cut = texture(piece.texture).crop((left, top, left + width, top + height))
        image.paste(cut, (x, y), rounded_mask(width, height, piece.radius))
        return
    if piece.shadow:
        _shadow(image, piece.box)
    if piece.border:
        _fill(image, piece.box, piece.border, piece.radius)
        x, y, width, height = x + 1, y + 1, width - 2, height - 2
    _fill(image, (x, y, width, height), piece.colour, piece.radius)


def _fill(image: Image.Image, box: Box, colour: Rgb, radius: int) -> None:
    x, y, width, height = box
    if radius:
        image.paste(colour, (x, y), rounded_mask(width, height, radius))
    else:
        image.paste(colour, (x, y, x + width, y + height))


def _shadow(image: Image.Image, box: Box) -> None:
    x, y, width, height = box
    mask = _faint(width, height)
    image.paste(_SHADOW_COLOUR, (x - 6, y - 4), mask)


@lru_cache(maxsize=4096)
def _faint(width: int, height: int) -> Image.Image:
    return shadow_mask(width, height).point([value * 70 // 255 for value in range(256)])


def _letter(image: Image.Image, widget: PageWidget, box: Box, colour: Rgb) -> None:
    """The letter in the middle of a box inside the widget, cut where it would leave the widget."""
    mask = letter_mask(widget.letter, widget.face, widget.size)
    x = box[0] + (box[2] - mask.width) // 2
    y = max(box[1] + (box[3] - mask.height) // 2, widget.box[1])
    image.paste(colour, (x, y), mask)


def _base(widget: PageWidget) -> Rgb:
    return SHADES[widget.colour][widget.shade]


def _mixed(colour: Rgb, other: Rgb, percent: int) -> Rgb:
    """``percent`` of ``colour``, the rest of ``other``."""
    red, green, blue = ((a * percent + b * (100 - percent)) // 100 for a, b in zip(colour, other, strict=True))
    return red, green, blue


def _pill(image: Image.Image, widget: PageWidget) -> None:
    """Fully rounded, from a lighter top to a darker bottom."""
    _glossy(image, widget, widget.box[3] // 2)


def _button(image: Image.Image, widget: PageWidget) -> None:
    """Slightly rounded, with a shadow."""
    _shadow(image, widget.box)
    _glossy(image, widget, 5)


def _glossy(image: Image.Image, widget: PageWidget, radius: int) -> None:
    x, y, width, height = widget.box
    colour = _base(widget)
    fill = _gradient(_mixed(colour, WHITE, 85), _mixed(colour, INK, 90), width, height)
    image.paste(fill, (x, y), rounded_mask(width, height, radius))
    _letter(image, widget, widget.box, WHITE)


def _icon(image: Image.Image, widget: PageWidget) -> None:
    """A ring with the letter in it."""
    x, y, width, height = widget.box
    colour = _base(widget)
    _fill(image, widget.box, colour, width // 2)
    _fill(image, (x + 3, y + 3, width - 6, height - 6), _mixed(colour, WHITE, 15), width // 2)
    _letter(image, widget, widget.box, _mixed(colour, INK, 85))


def _link(image: Image.Image, widget: PageWidget) -> None:
    """A letter and a line under it, on a pale ground."""
    x, y, width, height = widget.box
    colour = _base(widget)
    _fill(image, widget.box, _mixed(colour, WHITE, 8), 3)
    _fill(image, (x + 3, y + height - 4, width - 6, 3), colour, 0)
    _letter(image, widget, (x, y - 1, width, height - 2), colour)


def _check(image: Image.Image, widget: PageWidget) -> None:
    """A chip of the colour, and the letter beside it in plain ink."""
    x, y, width, height = widget.box
    _fill(image, widget.box, (206, 210, 216), 4)
    _fill(image, (x + 1, y + 1, width - 2, height - 2), WHITE, 4)
    side = min(width - 32, 18)
    _fill(image, (x + 4, y + (height - 18) // 2, side, 18), _base(widget), 4)
    _letter(image, widget, (x + side + 4, y, width - side - 6, height), INK)


def _tab(image: Image.Image, widget: PageWidget) -> None:
    """Dark ground with a bar of the colour on top, and a pale letter."""
    x, y, width, _ = widget.box
    colour = _base(widget)
    _fill(image, widget.box, _mixed(colour, INK, 60), 2)
    _fill(image, (x, y, width, 6), _mixed(colour, WHITE, 85), 0)
    _letter(image, widget, (x, y + 3, width, widget.box[3] - 3), _mixed(colour, WHITE, 30))


def _tag(image: Image.Image, widget: PageWidget) -> None:
    """Pale ground with a bar of the colour at the left, and a dark letter."""
    x, y, width, height = widget.box
    colour = _base(widget)
    _fill(image, widget.box, _mixed(colour, WHITE, 28), 4)
    _fill(image, (x, y, 6, height), colour, 0)
    _letter(image, widget, (x + 6, y, width - 6, height), _mixed(colour, INK, 50))


_DRAWERS = {
    "pill": _pill,
    "button": _button,
    "icon": _icon,
    "link": _link,
    "check": _check,
    "tab": _tab,
    "tag": _tag,
}
