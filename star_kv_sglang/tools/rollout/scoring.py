"""Is a reply right? Points count when they fall inside the target's box, words when they are the same."""

from __future__ import annotations

import re

from star_kv_sglang.tools.rollout.trajectory import Box, Question

CELL = 8
"""Pixels a coordinate unit: the reply ``x12 y20`` points at pixel (12 * 8 + 4, 20 * 8 + 4)."""

_POINT = re.compile(r"x(\d+) y(\d+)")


def parse_point(reply: str) -> tuple[int, int] | None:
    """The pixel that ``xN yM`` points at, or None when the reply is anything else."""
    match = _POINT.fullmatch(" ".join(reply.split()))
    if match is None:
        return None
    return int(match[1]) * CELL + CELL // 2, int(match[2]) * CELL + CELL // 2


def point_in_box(point: tuple[int, int], box: Box) -> bool:
    """Whether a pixel lies in a box; the right and the lower edge are outside."""
    x, y, width, height = box
    return x <= point[0] < x + width and y <= point[1] < y + height


def is_correct(question: Question, reply: str) -> bool:
    """Whether ``reply`` answers ``question``: a point inside its box, or its words whatever the spacing."""
    if parse_point(question.answer) is None:
        return reply.split() == question.answer.split()
    point = parse_point(reply)
    return point is not None and point_in_box(point, question.box)
