"""The size that a Qwen-VL processor gives an image: sides are multiples of a token's side, the area has bounds."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from star_kv_sglang.errors import StarKVError

Size = tuple[int, int]
"""Width, height in pixels."""

MAX_ASPECT_RATIO: Final = 200


class ImageSizeError(StarKVError, ValueError):
    """An image has a size that the model's processor refuses, or its bounds contradict each other."""


@dataclass(frozen=True, slots=True)
class PixelBounds:
    """What a processor does to an image's size.

    Attributes:
        factor: the sides become multiples of this many pixels (patch size times merge size).
        min_pixels, max_pixels: bounds of the resized area, both inclusive.
    """

    factor: int = 28
    min_pixels: int = 100 * 28 * 28
    max_pixels: int = 16384 * 28 * 28

    def __post_init__(self) -> None:
        if self.factor < 1 or not self.factor**2 <= self.min_pixels <= self.max_pixels:
            raise ImageSizeError(
                f"--min-pixels {self.min_pixels} and --max-pixels {self.max_pixels} must satisfy "
                f"{self.factor**2} <= min <= max; give the values of the served model's preprocessor_config.json"
            )


def smart_resize(size: Size, bounds: PixelBounds) -> Size:
    """The size that the Qwen-VL processors give an image (``smart_resize`` of transformers' Qwen2-VL processor).

    Each side is rounded to the nearest multiple of the factor (halves to the even multiple). When the area leaves the
    bounds, both sides are scaled by the same ratio instead, and rounded down (too large) or up (too small).

    Raises:
        ImageSizeError: a side is more than 200 times the other, or zero.
    """
    width, height = size
    if min(size) < 1 or max(size) / min(size) > MAX_ASPECT_RATIO:
        raise ImageSizeError(f"an image of {width}x{height} px: sides must be at least 1 and differ at most 200 times")
    factor = bounds.factor
    new_width = max(factor, round(width / factor) * factor)
    new_height = max(factor, round(height / factor) * factor)
    if new_width * new_height > bounds.max_pixels:
        shrink = math.sqrt(width * height / bounds.max_pixels)
        new_width = max(factor, math.floor(width / shrink / factor) * factor)
        new_height = max(factor, math.floor(height / shrink / factor) * factor)
    elif new_width * new_height < bounds.min_pixels:
        grow = math.sqrt(bounds.min_pixels / (width * height))
        new_width = math.ceil(width * grow / factor) * factor
        new_height = math.ceil(height * grow / factor) * factor
    return new_width, new_height
