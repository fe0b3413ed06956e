"""Screenshots of an invented desktop with a photographed wallpaper: PNG of 0.2 to 2 MB, no two alike."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
from PIL import Image, ImageDraw

from star_kv_sglang.tools.bench.serve.screens import draw_window

_WINDOWS = 10
_GRAIN = 6
"""Grey levels of the wallpaper's grain: what makes a PNG of a photograph large."""
_PNG_LEVEL = 1


def desktop(seed: int, size: tuple[int, int]) -> bytes:
    """One screenshot as PNG.

    Args:
        seed: Another one, another screenshot.
        size: Width and height in pixels.
    """
    random = np.random.default_rng(seed)
    width, height = size
    slope = np.linspace(60, 190, width, dtype=np.int16)[None, :] + np.linspace(0, 40, height, dtype=np.int16)[:, None]
    grain = np.zeros((height, width), np.int16)
    grain[: height // 3] = random.integers(0, _GRAIN, (height // 3, width), dtype=np.int16)
    pixels = np.stack([slope + grain, slope // 2 + grain, 255 - slope + grain], axis=2).clip(0, 255).astype(np.uint8)
    image = Image.fromarray(pixels)
    for _ in range(_WINDOWS):
        draw_window(ImageDraw.Draw(image), size, random)
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=_PNG_LEVEL)
    return file.getvalue()


def data_url(png: bytes) -> str:
    """As agents send it."""
    return "data:image/png;base64," + base64.b64encode(png).decode()


def data_urls(seeds: Sequence[int], size: tuple[int, int], *, jobs: int) -> dict[int, str]:
    """Screenshots by seed, drawn by several processes."""
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        drawn = pool.map(desktop, seeds, [size] * len(seeds), chunksize=4)
        return {seed: data_url(png) for seed, png in zip(seeds, drawn, strict=True)}
