"""Intervals and tests against closed forms, brute force and scipy."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from star_kv_sglang.tools.eval.statistics import bootstrap, mcnemar, paired_test


def names(count: int) -> list[str]:
    return [f"e{index}" for index in range(count)]


def test_the_interval_of_a_share_is_the_normal_one() -> None:
    values = [1.0] * 300 + [0.0] * 100
    estimate = bootstrap(values, names(400))
    half = 1.96 * math.sqrt(0.75 * 0.25 / 400)
    assert estimate.mean == 0.75
    assert estimate.low == pytest.approx(0.75 - half, abs=0.004)
    assert estimate.high == pytest.approx(0.75 + half, abs=0.004)


def test_samples_of_one_episode_are_not_independent() -> None:
    values = ([1.0] * 10 + [0.0] * 10) * 10
    together = bootstrap(values, [f"e{index // 10}" for index in range(200)])
    apart = bootstrap(values, names(200))
    assert (together.num_samples, together.num_episodes) == (200, 20)
    ratio = (together.high - together.low) / (apart.high - apart.low)
    assert ratio == pytest.approx(math.sqrt(10), rel=0.1), "20 episodes, each all right or all wrong"


def test_episodes_of_unequal_length_count_by_their_samples() -> None:
    assert bootstrap([1.0, 0.0, 0.0, 0.0], ["a", "b", "b", "b"]).mean == 0.25


def test_one_episode_has_no_interval() -> None:
    estimate = bootstrap([1.0, 0.0], ["a", "a"])
    assert (estimate.mean, estimate.low, estimate.high) == (0.5, 0.5, 0.5)


def test_the_same_values_give_the_same_interval() -> None:
    values = np.random.default_rng(0).random(50).tolist()
    assert bootstrap(values, names(50)) == bootstrap(values, names(50))


@pytest.mark.parametrize(("values", "episodes"), [([], []), ([1.0], ["a", "b"])], ids=["empty", "unequal"])
def test_nothing_has_no_mean(values: list[float], episodes: list[str]) -> None:
    with pytest.raises(ValueError, match="must be the same, and not zero"):
        bootstrap(values, episodes)


@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemar_is_the_binomial_test(lost: int, gained: int) -> None:
    expected = binomtest(lost, lost + gained).pvalue if lost + gained else 1.0
    assert mcnemar(lost, gained) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("lost", "gained", "p_value"),
    [
        pytest.param(0, 0, 1.0, id="nothing-changed"),
        pytest.param(5, 0, 2 / 32, id="all-lost"),
        pytest.param(3, 3, 1.0, id="even"),
        pytest.param(2000, 1500, 2.8e-17, id="thousands"),
    ],
)
def test_mcnemar_by_hand(lost: int, gained: int, p_value: float) -> None:
    assert mcnemar(lost, gained) == pytest.approx(p_value, rel=0.05)


def test_a_pair_of_binary_runs() -> None:
    reference = [1.0] * 8 + [0.0] * 2
    other = [0.0] * 5 + [1.0] * 3 + [0.0] * 2
    test = paired_test(reference, other, names(10))
    assert (test.test, test.num_lost, test.num_gained) == ("McNemar exact", 5, 0)
    assert test.difference.mean == -0.5 and test.p_value == pytest.approx(0.0625)
    assert test.difference.low < -0.5 < test.difference.high < 0.0


def test_the_sign_flip_test_is_the_full_permutation_test() -> None:
    differences = [0.3, -0.1, 0.25, 0.4, -0.05, 0.1, 0.2, 0.15]
    observed = abs(sum(differences))
    flips = list(itertools.product([-1, 1], repeat=len(differences)))
    exact = sum(abs(np.dot(signs, differences)) >= observed - 1e-12 for signs in flips) / len(flips)
    test = paired_test([0.5] * 8, [0.5 + difference for difference in differences], names(8))
    assert test.test == "sign-flip"
    assert test.p_value == pytest.approx(exact, abs=0.01)
    assert (test.num_lost, test.num_gained) == (2, 6)


def test_episodes_flip_as_a_whole() -> None:
    # Two episodes that both gained everywhere: 2 of the 4 sign patterns are as extreme.
    test = paired_test([0.0] * 20, [1.0] * 20, ["a"] * 10 + ["b"] * 10)
    assert test.test == "sign-flip" and test.p_value == pytest.approx(0.5, abs=0.02)


def test_equal_runs_do_not_differ() -> None:
    scores = [0.1, 0.9, 0.5]
    test = paired_test(scores, scores, names(3))
    assert (test.p_value, test.difference.mean, test.num_lost + test.num_gained) == (1.0, 0.0, 0)


def test_runs_of_unequal_length_do_not_pair() -> None:
    with pytest.raises(ValueError, match="do not pair"):
        paired_test([1.0], [1.0, 0.0], names(2))
