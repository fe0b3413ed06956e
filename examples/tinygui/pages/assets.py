"""What pages are drawn from: letters and words as coverage masks, and textures, the same on every machine.

Font rasterizers differ between versions, so letters (four faces of the DejaVu fonts in three sizes) and words are
shipped as pictures; ``python -m tinygui.pages.assets FOLDER`` draws them again from a folder of DejaVu fonts. Their
licence is in ``GLYPHS-LICENSE``. Masks and textures are computed in integers.
"""

from __future__ import annotations

import sys
from functools import cache, lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from tinygui.world import LETTERS

FACES = ("DejaVuSerif-Bold", "DejaVuSansMono-Bold", "DejaVuSans", "DejaVuSans-BoldOblique")
LETTER_SIZES = (18, 22, 26)
LETTER_CELL = 34
"""Pixels; the widest letter, W of the oblique face in size 26, takes 31."""

_WORDS = """
account archive basket billing browse calendar cancel careers comments contact daily details download drafts email
events export family filters folder gallery general groups history home inbox invoice journal language library market
members messages monthly news notes offers orders overview password people photos pricing privacy profile reports
reviews search security settings shared shipping status support tasks teams travel updates weather weekly
"""
WORDS = tuple(_WORDS.split())
WORD_FACES = ("DejaVuSans", "DejaVuSerif")
WORD_SIZES = (9, 11)
WORD_CELL = (72, 16)

NUM_TEXTURES = 12
TEXTURE_SIZE = 256
_NUM_NOISES = 8
_NOISE_MARGIN = 64

_FOLDER = Path(__file__).parent
_SHADOW = 6

_Integers = npt.NDArray[np.int64]


@cache
def letter_mask(letter: str, face: int, size: int) -> Image.Image:
    """Coverage of a letter, mode "L", cut to its bounds; ``face`` and ``size`` are indices."""
    left, top = LETTERS.index(letter) * LETTER_CELL, (face * len(LETTER_SIZES) + size) * LETTER_CELL
    return _trimmed(_picture("letters.png").crop((left, top, left + LETTER_CELL, top + LETTER_CELL)))


@cache
def word_mask(word: int, face: int, size: int) -> Image.Image:
    """Coverage of one of `WORDS`, mode "L", cut to its width."""
    width, height = WORD_CELL
    left, top = (face * len(WORD_SIZES) + size) * width, word * height
    cell = _picture("words.png").crop((left, top, left + width, top + height))
    bounds = cell.getbbox()
    return cell.crop((bounds[0], 0, bounds[2], height)) if bounds else cell


def _trimmed(cell: Image.Image) -> Image.Image:
    bounds = cell.getbbox()
    return cell.crop(bounds) if bounds else cell


@cache
def _picture(name: str) -> Image.Image:
    with Image.open(_FOLDER / name) as picture:
        return picture.convert("L")


@lru_cache(maxsize=4096)
def rounded_mask(width: int, height: int, radius: int) -> Image.Image:
    """A filled rounded rectangle, anti-aliased by 4 x 4 samples a pixel, mode "L"."""
    radius = min(radius, width // 2, height // 2)
    # Distances in eighths of a pixel, at the samples' centres.
    x = _outside(width, radius)[None, :]
    y = _outside(height, radius)[:, None]
    inside = (x * x + y * y <= (8 * radius) ** 2).astype(np.int64)
    coverage = inside.reshape(height, 4, width, 4).sum(axis=(1, 3))
    return Image.fromarray((coverage * 255 // 16).astype(np.uint8))


def _outside(length: int, radius: int) -> _Integers:
    """How far each sample lies beyond the straight part of a side."""
    centres = np.arange(4 * length, dtype=np.int64) * 2 + 1
    outside: _Integers = np.maximum(np.maximum(8 * radius - centres, centres - 8 * (length - radius)), 0)
    return outside


@lru_cache(maxsize=4096)
def shadow_mask(width: int, height: int) -> Image.Image:
    """A soft shadow that reaches 6 px beyond a rectangle on every side, mode "L"."""
    across, down = _ramp(width), _ramp(height)
    return Image.fromarray((down[:, None] * across[None, :] // 255).astype(np.uint8))


def _ramp(length: int) -> _Integers:
    steps = np.arange(length + 2 * _SHADOW, dtype=np.int64) + 1
    nearest = np.minimum(steps, steps[::-1])
    ramp: _Integers = np.minimum(nearest * 255 // (2 * _SHADOW), 255)
    return ramp


@cache
def texture(index: int) -> Image.Image:
    """A photo-like square: smooth noise of four scales in each channel, mode "RGB"."""
    rng = np.random.Generator(np.random.PCG64(1_000 + index))
    total = np.zeros((TEXTURE_SIZE, TEXTURE_SIZE, 3), dtype=np.int64)
    for cells, weight in ((4, 8), (8, 4), (32, 2), (128, 1)):
        shape = (cells + 1, cells + 1)
        # Channels go together for the most part, as in photos.
        grid = rng.integers(0, 256, size=(*shape, 3)) + 2 * rng.integers(0, 256, size=(*shape, 1))
        factor = TEXTURE_SIZE // cells
        total += weight * _enlarged(grid, factor) // (factor * factor)
    low, high = total.min(axis=(0, 1)), total.max(axis=(0, 1))
    return Image.fromarray(((total - low) * 255 // (high - low)).astype(np.uint8))


def _enlarged(grid: _Integers, factor: int) -> _Integers:
    """Linear interpolation between grid points, in integers, times the square of ``factor``."""
    step = np.arange(factor, dtype=np.int64)
    rows: _Integers = (
        grid[:-1, None] * (factor - step)[None, :, None, None] + grid[1:, None] * step[None, :, None, None]
    )
    rows = rows.reshape(-1, *grid.shape[1:])
    near, far = rows[:, :-1, None], rows[:, 1:, None]
    both: _Integers = near * (factor - step)[None, None, :, None] + far * step[None, None, :, None]
    return both.reshape(len(rows), -1, grid.shape[2])


@cache
def noise(index: int, width: int, height: int) -> Image.Image:
    """Grain from 0 to 2 * amplitude around the amplitude, `index` % 4 + 1, larger than the screen by a margin."""
    rng = np.random.Generator(np.random.PCG64(2_000 + index))
    amplitude = index % 4 + 1
    shape = (height + _NOISE_MARGIN, width + _NOISE_MARGIN, 3)
    return Image.fromarray(rng.integers(0, 2 * amplitude + 1, size=shape, dtype=np.uint8))


def draw_letters(fonts: Path) -> Image.Image:
    """Every letter in every face and size, each in the middle of its cell."""
    rows = [(face, size) for face in FACES for size in LETTER_SIZES]
    atlas = Image.new("L", (LETTER_CELL * len(LETTERS), LETTER_CELL * len(rows)), 0)
    pen = ImageDraw.Draw(atlas)
    for row, (face, size) in enumerate(rows):
        font = ImageFont.truetype(str(fonts / f"{face}.ttf"), size, layout_engine=ImageFont.Layout.BASIC)
        for column, letter in enumerate(LETTERS):
            centre = (column * LETTER_CELL + LETTER_CELL // 2, row * LETTER_CELL + LETTER_CELL // 2)
            left, top, right, bottom = (int(edge) for edge in font.getbbox(letter))
            pen.text((centre[0] - (left + right) // 2, centre[1] - (top + bottom) // 2), letter, font=font, fill=255)
    return atlas


def draw_words(fonts: Path) -> Image.Image:
    """Every word in every face and size, a row a word."""
    width, height = WORD_CELL
    columns = [(face, size) for face in WORD_FACES for size in WORD_SIZES]
    atlas = Image.new("L", (width * len(columns), height * len(WORDS)), 0)
    pen = ImageDraw.Draw(atlas)
    for column, (face, size) in enumerate(columns):
        font = ImageFont.truetype(str(fonts / f"{face}.ttf"), size, layout_engine=ImageFont.Layout.BASIC)
        for row, word in enumerate(WORDS):
            pen.text((column * width + 1, row * height + 1), word, font=font, fill=255)
    return atlas


if __name__ == "__main__":
    draw_letters(Path(sys.argv[1])).save(_FOLDER / "letters.png", optimize=True)
    draw_words(Path(sys.argv[1])).save(_FOLDER / "words.png", optimize=True)
