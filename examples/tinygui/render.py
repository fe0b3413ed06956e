"""Draws a screen with PIL: rectangles and shipped letter masks only, so that the pixels are the same everywhere."""

from __future__ import annotations

from PIL import Image, ImageDraw

from star_kv_sglang.tools.rollout.trajectory import Box
from tinygui.glyphs import CELL_SIZE, glyph
from tinygui.world import Rgb, Screen, Widget

BASE_COLOURS: dict[str, Rgb] = {
    "red": (208, 46, 46),
    "blue": (40, 88, 214),
    "green": (38, 150, 70),
    "orange": (242, 140, 30),
    "purple": (132, 62, 182),
    "gray": (118, 122, 128),
    "teal": (20, 160, 168),
    "pink": (236, 100, 170),
}
PALE_COLOURS: dict[str, Rgb] = {
    "red": (246, 213, 213),
    "blue": (212, 222, 247),
    "green": (212, 234, 218),
    "orange": (252, 232, 210),
    "purple": (230, 216, 240),
    "gray": (228, 228, 230),
    "teal": (208, 236, 238),
    "pink": (251, 224, 238),
}
WHITE: Rgb = (255, 255, 255)
BORDER = 2


def render(screen: Screen) -> Image.Image:
    """The screen's pixels, mode "RGB"."""
    image = Image.new("RGB", (screen.width, screen.height), screen.background.page)
    pen = ImageDraw.Draw(image)
    for panel in screen.background.panels:
        _fill(pen, panel.box, panel.colour)
    for widget in screen.widgets:
        _draw_widget(image, pen, widget)
    return image


def _draw_widget(image: Image.Image, pen: ImageDraw.ImageDraw, widget: Widget) -> None:
    border, inside, ink = _look(widget)
    x, y, width, height = widget.box
    _fill(pen, widget.box, border)
    _fill(pen, (x + BORDER, y + BORDER, width - 2 * BORDER, height - 2 * BORDER), inside)
    corner = (x + width // 2 - CELL_SIZE // 2, y + height // 2 - CELL_SIZE // 2)
    # A letter may stand over its widget's border but never over the background.
    letter = Image.new("RGB", (width, height), ink)
    mask = Image.new("L", (width, height), 0)
    mask.paste(glyph(widget.letter, widget.font_size), (corner[0] - x, corner[1] - y))
    image.paste(letter, (x, y), mask)


def _look(widget: Widget) -> tuple[Rgb, Rgb, Rgb]:
    """Colours of border, inside and letter."""
    base, pale = BASE_COLOURS[widget.colour], PALE_COLOURS[widget.colour]
    ink = _darker(base, 90)
    if widget.style == "filled":
        return base, base, WHITE
    if widget.style == "outlined":
        return base, WHITE, ink
    return _darker(pale, 85), pale, ink


def _darker(colour: Rgb, percent: int) -> Rgb:
    red, green, blue = ((value * percent + 50) // 100 for value in colour)
    return red, green, blue


def _fill(pen: ImageDraw.ImageDraw, box: Box, colour: Rgb) -> None:
    x, y, width, height = box
    pen.rectangle((x, y, x + width - 1, y + height - 1), fill=colour)
