"""From the coordinates that a model writes to points of the screenshot, and back.

A Qwen-VL processor rounds the sides of an image to multiples of 28 pixels (Qwen3-VL: 32) and keeps the area between two
bounds. Qwen2.5-VL and its descendants write pixels of that resized image; Qwen3-VL writes thousandths of the sides.
"""

from __future__ import annotations

from enum import StrEnum

from star_kv_sglang.tools.actions import Point
from star_kv_sglang.tools.resize import PixelBounds, Size, smart_resize


class CoordinateSpace(StrEnum):
    """What a model's coordinates count."""

    RESIZED_PIXELS = "pixels of the image as the processor resizes it"
    THOUSANDTHS = "thousandths of the image's sides"


def extent(space: CoordinateSpace, sent: Size, bounds: PixelBounds) -> Size:
    """The coordinates of the lower right corner of an image of ``sent`` pixels."""
    return (1000, 1000) if space is CoordinateSpace.THOUSANDTHS else smart_resize(sent, bounds)


def to_relative(x: float, y: float, corner: Size) -> Point:
    """A model's coordinates as a point of the screenshot; ``corner`` is what `extent` says."""
    return x / corner[0], y / corner[1]


def from_relative(point: Point, corner: Size) -> tuple[int, int]:
    """A point of the screenshot in a model's coordinates, rounded to whole numbers."""
    return round(point[0] * corner[0]), round(point[1] * corner[1])
