"""Intervals and paired tests. Samples of one episode share their screenshots, so whole episodes are the unit.

All draws come from a fixed seed: the same results give the same figures.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

RESAMPLES: Final = 10_000
SEED: Final = 20_260_601
LEVEL: Final = 0.95
_CHUNK: Final = 500

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean with its confidence interval (95%, bootstrap over episodes, percentiles).

    Attributes:
        mean: over samples.
        low, high: the interval; the mean itself when there is one episode.
        num_samples, num_episodes: what it rests on.
    """

    mean: float
    low: float
    high: float
    num_samples: int
    num_episodes: int


@dataclass(frozen=True, slots=True)
class PairedTest:
    """Another run against a reference run on the same samples.

    Attributes:
        difference: mean of other minus reference, with its interval.
        p_value: two-sided, of the hypothesis that the two are the same.
        test: ``McNemar exact`` when every score is 0 or 1 and every episode has one sample, else ``sign-flip``
            (permutation over episodes).
        num_lost, num_gained: samples whose score fell and rose.
    """

    difference: Estimate
    p_value: float
    test: str
    num_lost: int
    num_gained: int


def bootstrap(values: Sequence[float], episodes: Sequence[str]) -> Estimate:
    """The mean of values and its interval; ``episodes`` says which episode each value belongs to.

    Raises:
        ValueError: there are no values, or not one episode for each.
    """
    sums, counts = _by_episode(values, episodes)
    mean = float(sums.sum() / counts.sum())
    if len(sums) == 1:
        return Estimate(mean, mean, mean, len(values), 1)
    rng = np.random.default_rng(SEED)
    means = np.empty(RESAMPLES)
    for start in range(0, RESAMPLES, _CHUNK):
        drawn = rng.integers(len(sums), size=(min(_CHUNK, RESAMPLES - start), len(sums)))
        means[start : start + len(drawn)] = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(mean, float(low), float(high), len(values), len(sums))


def paired_test(reference: Sequence[float], other: Sequence[float], episodes: Sequence[str]) -> PairedTest:
    """Compares two runs, sample by sample.

    Raises:
        ValueError: the lengths differ, or there are no samples.
    """
    if len(reference) != len(other):
        raise ValueError(f"{len(reference)} reference scores do not pair with {len(other)} others")
    differences = np.asarray(other, float) - np.asarray(reference, float)
    lost, gained = int((differences < 0).sum()), int((differences > 0).sum())
    estimate = bootstrap(differences.tolist(), episodes)
    if set(reference) | set(other) <= {0.0, 1.0} and estimate.num_episodes == len(differences):
        return PairedTest(estimate, mcnemar(lost, gained), "McNemar exact", lost, gained)
    return PairedTest(estimate, _sign_flip(differences, episodes), "sign-flip", lost, gained)


def p_text(p_value: float) -> str:
    """A p-value as tables show it."""
    return "< 0.001" if p_value < 0.001 else f"{p_value:.3f}"


def wilson(right: int, asked: int) -> tuple[float, float]:
    """Wilson's interval (95%) of a share of independent questions; 0 and 1 when nothing was asked."""
    if not asked:
        return 0.0, 1.0
    share, z = right / asked, 1.959964
    scale = 1 + z * z / asked
    centre = (share + z * z / (2 * asked)) / scale
    half = z / scale * math.sqrt(share * (1 - share) / asked + z * z / (4 * asked * asked))
    return max(0.0, centre - half), min(1.0, centre + half)


def mcnemar(lost: int, gained: int) -> float:
    """Exact two-sided p-value: of the samples that changed, each was as likely to be lost as to be gained."""
    changed = lost + gained
    tail = sum(math.comb(changed, count) for count in range(min(lost, gained) + 1))
    # Integers until the last division: the binomial coefficients of 1,000 changes exceed a float.
    return min(1.0, 2 * tail / int(2**changed))


def _sign_flip(differences: Floats, episodes: Sequence[str]) -> float:
    sums, _ = _by_episode(differences.tolist(), episodes)
    observed = abs(sums.sum())
    # Sums that are equal on paper must not count as smaller for a rounding error.
    threshold = observed - 1e-9 * max(1.0, observed)
    rng = np.random.default_rng(SEED)
    extreme = 0
    for start in range(0, RESAMPLES, _CHUNK):
        rows = min(_CHUNK, RESAMPLES - start)
        signs = rng.integers(2, size=(rows, len(sums))) * 2 - 1
        extreme += int((np.abs(signs @ sums) >= threshold).sum())
    return (extreme + 1) / (RESAMPLES + 1)


def _by_episode(values: Sequence[float], episodes: Sequence[str]) -> tuple[Floats, Floats]:
    if not values or len(values) != len(episodes):
        raise ValueError(f"{len(values)} values and {len(episodes)} episodes: both must be the same, and not zero")
    _, index = np.unique(np.asarray(episodes, dtype=object).astype(str), return_inverse=True)
    sums = np.bincount(index, weights=np.asarray(values, np.float64)).astype(np.float64)
    return sums, np.bincount(index).astype(np.float64)
