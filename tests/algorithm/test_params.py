from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from star_kv_sglang.algorithm.params import ScorerParams


def test_an_unknown_key_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"unknown scorer parameter boost_alfa.*boost_alpha"):
        ScorerParams.from_mapping({"boost_alfa": 1.0})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("observation_window", 0),
        ("observation_window", 8.0),
        ("observation_window", True),
        ("pool_width", 4),
        ("boost", 1),
        ("boost_temperature", 0.0),
        ("boost_alpha", float("nan")),
        ("prior_lambda", 1.1),
        ("prior_ramp_steps", 0),
        ("prior_tau", -1.0),
        ("discount_rho", 2.0),
        ("temperature_min", 0.0),
        ("temperature_max", 0.5),
        ("temperature_smoothing", 1.0),
        ("grid", "guess"),
        ("pattern_dtype", "int8"),
    ],
)
def test_a_bad_value_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=name):
        ScorerParams.from_mapping({name: value})


def test_all_problems_come_at_once() -> None:
    with pytest.raises(ValueError) as error:
        ScorerParams(pool_width=2, prior_tau=0.0)
    assert "pool_width" in str(error.value)
    assert "prior_tau" in str(error.value)


def test_an_integer_is_a_number() -> None:
    assert ScorerParams.from_mapping({"boost_alpha": 2}).boost_alpha == 2


@pytest.mark.parametrize(("step", "weight"), [(0, 0.0), (5, 0.0), (6, 0.05), (10, 0.25), (15, 0.5), (100, 0.5)])
def test_the_prior_is_off_during_warm_up_and_then_ramps(step: int, weight: float) -> None:
    assert ScorerParams().prior_weight(step) == pytest.approx(weight)


def test_parameters_cannot_change() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        ScorerParams().boost_alpha = 1.0  # type: ignore[misc]
