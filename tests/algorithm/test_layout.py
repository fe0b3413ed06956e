from __future__ import annotations

import pytest

from star_kv_sglang.algorithm.layout import FrameSpan, PromptLayout


@pytest.mark.parametrize(
    ("rows", "cols", "square"),
    [(10, 10, (10, 10)), (4, 36, (12, 12)), (1, 1, (1, 1)), (1, 7, (3, 3)), (39, 69, (52, 52))],
)
def test_square_grid_covers_the_frame(rows: int, cols: int, square: tuple[int, int]) -> None:
    assert FrameSpan(0, 1, rows, cols).square_grid() == square
    assert square[0] * square[1] >= rows * cols


@pytest.mark.parametrize(("start", "end"), [(-1, 2), (3, 2)])
def test_a_span_is_a_range(start: int, end: int) -> None:
    with pytest.raises(ValueError, match="range"):
        FrameSpan(start, end, 1, 1)


def test_a_frame_has_cells() -> None:
    with pytest.raises(ValueError, match="no cells"):
        FrameSpan(0, 0, 0, 4)


@pytest.mark.parametrize(
    "frames",
    [
        pytest.param((FrameSpan(0, 4, 2, 2), FrameSpan(3, 5, 1, 2)), id="overlap"),
        pytest.param((FrameSpan(4, 6, 1, 2), FrameSpan(0, 2, 1, 2)), id="newest-first"),
        pytest.param((FrameSpan(6, 10, 2, 2),), id="inside-the-window"),
    ],
)
def test_frames_are_disjoint_ordered_and_in_the_past(frames: tuple[FrameSpan, ...]) -> None:
    with pytest.raises(ValueError, match="oldest first"):
        PromptLayout(num_live=10, window=2, frames=frames, num_frames_total=2)


def test_the_window_fits_the_prompt() -> None:
    with pytest.raises(ValueError, match="window of 3"):
        PromptLayout(num_live=2, window=3, frames=(), num_frames_total=0)


def test_the_total_counts_the_frames_of_the_prompt() -> None:
    with pytest.raises(ValueError, match="num_frames_total"):
        PromptLayout(num_live=5, window=1, frames=(FrameSpan(0, 1, 1, 1),), num_frames_total=0)
