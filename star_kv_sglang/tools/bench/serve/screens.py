"""Screenshots of an invented desktop: windows, text lines and icons, as PNG files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

NUM_SCREENS = 16
"""Different screenshots; a longer history shows them again."""


def write_screens(folder: Path, size: tuple[int, int]) -> list[Path]:
    """Draw the screenshots, each a little different from the one before, as a desktop in use is.

    Args:
        folder: receives them.
        size: width and height in pixels.
    """
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    image = Image.new("RGB", size, (238, 240, 243))
    for _ in range(12):
        draw_window(ImageDraw.Draw(image), size, random)
    paths = []
    for index in range(NUM_SCREENS):
        draw_window(ImageDraw.Draw(image), size, random)
        path = folder / f"screen_{index:02d}.png"
        image.save(path, compress_level=1)
        paths.append(path)
    return paths


def draw_window(draw: ImageDraw.ImageDraw, size: tuple[int, int], random: np.random.Generator) -> None:
    """Draw a window with lines of text at a random place."""
    width, height = (max(8, int(side * random.uniform(0.1, 0.4))) for side in size)
    left, top = int(random.uniform(0, size[0] - width)), int(random.uniform(0, size[1] - height))
    draw.rectangle((left, top, left + width, top + height), fill=_color(random), outline=(90, 90, 90))
    for line in range(top + 6, top + height - 4, 9):
        x = left + 4
        while x < left + width - 12:
            word = int(random.uniform(4, 40))
            draw.rectangle((x, line, min(x + word, left + width - 4), line + 4), fill=_color(random, dark=True))
            x += word + 5


def _color(random: np.random.Generator, *, dark: bool = False) -> tuple[int, int, int]:
    low, high = (10, 110) if dark else (170, 255)
    red, green, blue = random.integers(low, high, 3)
    return int(red), int(green), int(blue)
