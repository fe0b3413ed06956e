"""Percentiles of small samples."""

from __future__ import annotations

from collections.abc import Sequence
from math import comb
from typing import Final

_TAIL: Final = 0.025


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which ``share`` of the sample lies, linear between neighbours.

    Raises:
        ValueError: the sample is empty.
    """
    if not values:
        raise ValueError("a percentile needs at least one value")
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def median_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """The median and its 95% interval, which no outlier widens: by ranks, with the binomial distribution.

    With fewer than six values no two of them enclose the median so surely; the smallest and the largest are given.

    Raises:
        ValueError: the sample is empty.
    """
    ordered, rank = sorted(values), 0
    below = 1.0  # of 2 ** len(values): ways in which at most ``rank`` values lie below the median
    while below / 2 ** len(ordered) <= _TAIL:
        rank += 1
        below += comb(len(ordered), rank)
    outer = max(rank - 1, 0)
    return percentile(ordered, 0.5), ordered[outer], ordered[len(ordered) - 1 - outer]
