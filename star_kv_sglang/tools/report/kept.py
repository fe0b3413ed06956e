"""Draws kept tokens on a screenshot."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

LEGEND = "The clearer a token and its frame, the more layers keep it; what is dark is dropped by all."

_DROPPED = np.array((24, 28, 38), dtype=np.float64)
_FRAME = np.array((255, 140, 0), dtype=np.float64)
_FRAME_PX = 1
_DIM = 0.8
_FAINTEST = 0.3


def draw_kept(screenshot: Image.Image, kept_fraction: NDArray[np.float64], *, scale: int = 2) -> Image.Image:
    """The screenshot with a heat overlay of the tokens that stay; `LEGEND` says how to read it.

    Args:
        screenshot: any size.
        kept_fraction: [rows, cols] in [0, 1], fraction of layers that keep each token.
        scale: enlargement of the picture.

    Returns:
        Mode "RGB", ``scale`` times the screenshot's size.

    Raises:
        ValueError: ``kept_fraction`` is no grid of numbers in [0, 1].
    """
    if kept_fraction.ndim != 2 or kept_fraction.size == 0 or kept_fraction.min() < 0 or kept_fraction.max() > 1:
        raise ValueError(f"kept_fraction must be [rows, cols] with values in [0, 1], not shape {kept_fraction.shape}")
    width, height = screenshot.width * scale, screenshot.height * scale
    pixels = np.asarray(screenshot.convert("RGB").resize((width, height), Image.Resampling.NEAREST), dtype=np.float64)
    rows, cols = kept_fraction.shape
    row_of, col_of = np.arange(height) * rows // height, np.arange(width) * cols // width
    heat = np.where(kept_fraction > 0, _FAINTEST + (1 - _FAINTEST) * kept_fraction, 0.0)
    heat = heat[row_of][:, col_of][..., None]  # [height, width, 1]
    shown = _blend(pixels, _DROPPED, _DIM * (1 - heat))
    framed = _near_edge(row_of)[:, None, None] | _near_edge(col_of)[None, :, None]
    return Image.fromarray(_blend(shown, _FRAME, heat * framed).round().astype(np.uint8))


def _blend(
    pixels: NDArray[np.float64], colour: NDArray[np.float64], opacity: NDArray[np.float64]
) -> NDArray[np.float64]:
    return pixels * (1 - opacity) + colour * opacity


def _near_edge(cell_of: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Along one axis: whether a pixel is among the first or last of its cell."""
    padded = np.pad(cell_of, _FRAME_PX, constant_values=-1)
    edge: NDArray[np.bool_] = (padded[: -2 * _FRAME_PX] != cell_of) | (padded[2 * _FRAME_PX :] != cell_of)
    return edge
