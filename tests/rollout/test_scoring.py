"""Scoring, by hand-computed cases."""

from __future__ import annotations

import pytest

from star_kv_sglang.tools.rollout.scoring import is_correct, parse_point, point_in_box
from star_kv_sglang.tools.rollout.trajectory import Question


@pytest.mark.parametrize(
    ("reply", "point"),
    [
        ("x12 y20", (100, 164)),
        ("x0 y0", (4, 4)),
        ("  x12   y20\n", (100, 164)),
        ("x12", None),
        ("y20 x12", None),
        ("x12 y20 x1", None),
        ("x-1 y2", None),
        ("red K", None),
        ("", None),
    ],
)
def test_parse_point(reply: str, point: tuple[int, int] | None) -> None:
    assert parse_point(reply) == point


@pytest.mark.parametrize(
    ("point", "inside"),
    [((10, 20), True), ((13, 24), True), ((14, 24), False), ((13, 25), False), ((9, 20), False), ((10, 19), False)],
    ids=["first-pixel", "last-pixel", "right-edge", "lower-edge", "left-of-it", "above-it"],
)
def test_right_and_lower_edges_are_outside(point: tuple[int, int], inside: bool) -> None:
    assert point_in_box(point, (10, 20, 4, 5)) is inside


@pytest.mark.parametrize(
    ("reply", "correct"),
    [
        ("x12 y20", True),
        ("x11 y20", True),
        ("x9 y20", False),
        ("x12 y23", False),
        ("red K", False),
        ("x12", False),
    ],
    ids=["centre", "elsewhere-in-the-box", "left-of-the-box", "below-the-box", "words", "half-a-point"],
)
def test_points_count_inside_the_box(reply: str, correct: bool) -> None:
    question = Question("click red K here", "x12 y20", (80, 150, 40, 30), 0, False)
    assert is_correct(question, reply) is correct


@pytest.mark.parametrize(
    ("reply", "correct"),
    [("red K", True), (" red  K ", True), ("blue K", False), ("red", False), ("red K K", False), ("x12 y20", False)],
)
def test_words_count_when_all_are_there(reply: str, correct: bool) -> None:
    question = Question("read x12 y20 here", "red K", (80, 150, 40, 30), 0, False)
    assert is_correct(question, reply) is correct
