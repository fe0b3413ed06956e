"""Rates over a window of time."""

from __future__ import annotations

import pytest

from star_kv_sglang.tools.bench.serve.client import Stream
from star_kv_sglang.tools.bench.serve.decode import tokens_per_second
from star_kv_sglang.tools.bench.serve.errors import ServeBenchError
from star_kv_sglang.tools.bench.serve.statistic import median_interval, percentile


def test_each_stream_counts_from_its_first_to_its_last_chunk_inside() -> None:
    """Chunks of eight tokens at 10 ms a step, out of phase: the rate is exact, whatever the window cuts."""
    fast = Stream(chunks=[(0.08 * index, 8 * index) for index in range(30)])
    shifted = Stream(chunks=[(0.03 + 0.08 * index, 8 * index) for index in range(30)])
    assert tokens_per_second([fast, shifted], 0.5, 1.5) == pytest.approx(200.0)


def test_chunks_outside_do_not_count() -> None:
    stream = Stream(chunks=[(0.0, 0), (1.0, 50), (2.0, 150), (3.0, 1000)])
    assert tokens_per_second([stream], 1.0, 2.0) == pytest.approx(100.0)


def test_a_window_with_one_chunk_says_so() -> None:
    with pytest.raises(ServeBenchError, match="fewer than two chunks"):
        tokens_per_second([Stream(chunks=[(0.0, 1), (5.0, 9)])], 1.0, 6.0)


@pytest.mark.parametrize(
    ("values", "share", "expected"),
    [
        pytest.param([7.0], 0.95, 7.0, id="one value"),
        pytest.param([3.0, 1.0, 2.0], 0.5, 2.0, id="median of an odd number"),
        pytest.param([1.0, 2.0], 0.5, 1.5, id="between two"),
        pytest.param([0.0, 10.0, 20.0], 1.0, 20.0, id="the largest"),
    ],
)
def test_percentile(values: list[float], share: float, expected: float) -> None:
    assert percentile(values, share) == pytest.approx(expected)


def test_percentile_of_nothing() -> None:
    with pytest.raises(ValueError, match="at least one"):
        percentile([], 0.5)


@pytest.mark.parametrize(
    ("number", "low", "high"), [(1, 1, 1), (5, 1, 5), (6, 1, 6), (9, 2, 8), (12, 3, 10), (20, 6, 15)]
)
def test_interval_of_a_median_has_the_ranks_of_the_tables(number: int, low: int, high: int) -> None:
    values = [float(value) for value in range(number, 0, -1)]
    assert median_interval(values) == ((number + 1) / 2, low, high)


def test_an_outlier_moves_no_interval() -> None:
    assert median_interval([1.0] * 8 + [50.0]) == (1.0, 1.0, 1.0)
