"""What every policy keeps, against its rule written down again."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from star_kv_sglang.policies import REFUSED, policy_names
from tests.policies import by_hand, prefill
from tests.policies.by_hand import RULES, chosen_by_hand
from tests.policies.prefill import PROMPTS, Prefill, Prompt, chosen_by_engine, make_policy, watched

# A policy whose rule is not here has its own test.
ELSEWHERE = {"random"}


@pytest.mark.parametrize("name", sorted(RULES))
@pytest.mark.parametrize("seed", [1, 2])
def test_keeps_what_its_rule_says(name: str, seed: int) -> None:
    run = Prefill.random(seed)
    assert chosen_by_engine(name, run) == chosen_by_hand(name, run)


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0], ids=["never_asks", "asks_for_a_quarter", "asks_for_all"])
def test_star_gives_the_question_the_share_that_is_set(share: float) -> None:
    run = Prefill.random(6)
    assert chosen_by_engine("star", run, question_share=share) == chosen_by_hand("star", run, question_share=share)


@pytest.mark.parametrize("competes", [0.0, 1.0], ids=["for_nothing", "for_all_that_is_asked_for"])
def test_screenshots_compete_for_the_part_of_the_question_s_share_that_is_set(competes: float) -> None:
    run = Prefill.random(12)
    kept = chosen_by_engine("star", run, question_share=1.0, question_competes=competes)
    assert kept == chosen_by_hand("star", run, question_share=1.0, question_competes=competes)
    equal = chosen_by_engine("star", run, question_share=1.0, question_competes=0.0)
    assert (kept == equal) is (competes == 0.0)


@pytest.mark.parametrize(("name", "seed"), [("star", 9), ("star-paper", 11)])
@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"prior": False}, id="no_prior"),
        pytest.param({"temporal": False}, id="no_discount"),
        pytest.param({"temperature": False}, id="no_temperature"),
        pytest.param({"prior": False, "temporal": False, "temperature": False}, id="no_axis"),
        pytest.param({"prior_warmup_steps": 0, "prior_ramp_steps": 1}, id="prior_at_once"),
        pytest.param({"prior_warmup_steps": 0, "prior_ramp_steps": 1, "subspaces": False}, id="one_mean_of_the_groups"),
    ],
)
def test_axes_weigh_as_set(name: str, seed: int, settings: dict[str, Any]) -> None:
    run = Prefill.random(seed)
    assert chosen_by_engine(name, run, **settings) == chosen_by_hand(name, run, **settings)


@pytest.mark.parametrize(
    ("name", "seed", "settings"),
    [
        pytest.param("star", 9, {"question_share": 0.0}, id="distinct"),
        pytest.param("star-paper", 11, {}, id="window"),
    ],
)
def test_the_prior_and_the_groups_make_a_difference_on_either_saliency(
    name: str, seed: int, settings: dict[str, Any]
) -> None:
    run, at_once = Prefill.random(seed), {"prior_warmup_steps": 0, "prior_ramp_steps": 1, **settings}
    scores = []
    for switches in ({}, {"prior": False}, {"subspaces": False}):
        policy = make_policy(name, **at_once, **switches)
        scores.append(policy.score(watched(policy, run)[1]).calibrated)
    assert not torch.allclose(scores[0], scores[1], atol=1e-3)
    # Heads that all have the mean of all tell the same.
    assert torch.allclose(scores[2], scores[1], atol=1e-6)


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"beside_peak": 0.0}, id="peaks_before_all_others"),
        pytest.param({"beside_peak": 0.3}, id="beside_a_peak_a_third"),
        pytest.param({"beside_peak": 1.0}, id="beside_a_peak_all"),
        pytest.param({"peaks": False}, id="no_peaks"),
    ],
)
@pytest.mark.parametrize("seed", [7, 8])
def test_tokens_beside_a_peak_count_as_set(settings: dict[str, Any], seed: int) -> None:
    run = Prefill.random(seed)
    assert chosen_by_engine("distinct", run, **settings) == chosen_by_hand("distinct", run, **settings)


def test_what_counts_beside_a_peak_makes_a_difference() -> None:
    run = Prefill.random(7)
    kept = [chosen_by_engine("distinct", run, beside_peak=share) for share in (0.0, 0.3, 1.0)]
    assert kept[0] != kept[1] != kept[2] != kept[0]
    assert kept[2] == chosen_by_engine("distinct", run, peaks=False)


@pytest.mark.parametrize("settings", [{}, {"repeated": 0.3}, {"repeated": 0.99}, {"neighbourhood": 5}], ids=str)
def test_what_the_next_screenshot_shows_again_is_kept_behind_all_others(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three screenshots of one size, half of which stays the same from each to the next."""
    prompts = (Prompt(((2, 4, 5), (25, 4, 5), (48, 4, 5)), 75),)
    for module in (by_hand, prefill):
        monkeypatch.setattr(module, "PROMPTS", prompts)
    run = Prefill.random(9)
    for start, later in ((2, 25), (25, 48)):
        run.value[:, later : later + 10] = run.value[:, start : start + 10] * 1.5
    kept = chosen_by_engine("stlite", run, **settings)
    assert kept == chosen_by_hand("stlite", run, **settings)
    if not settings:
        repeated = {*range(2, 12), *range(25, 35)}
        assert not repeated & {p for frame in kept[0] for layer in frame for p in layer}


@pytest.mark.parametrize("recovered", [0.3, 0.6, 0.8])
def test_heads_with_local_attention_keep_the_most_recent_tokens(recovered: float) -> None:
    run = Prefill.random(10)
    assert chosen_by_engine("fastgen", run, recovered=recovered) == chosen_by_hand("fastgen", run, recovered=recovered)


def test_the_share_that_a_structure_must_recover_makes_a_difference() -> None:
    run = Prefill.random(10)
    kept = [chosen_by_engine("fastgen", run, recovered=share) for share in (0.3, 0.6, 1.0)]
    assert kept[0] != kept[1] != kept[2] != kept[0]


@pytest.mark.parametrize("chunk", [10, 30], ids=["cut_inside_a_screenshot", "cut_behind_screenshots"])
def test_sums_of_attention_go_on_over_chunks(chunk: int) -> None:
    run = Prefill.random(3)
    assert chosen_by_engine("h2o", run, chunk) == chosen_by_engine("h2o", run)


def test_random_keeps_the_same_share_of_every_screenshot_and_other_tokens_in_every_layer() -> None:
    run = Prefill.random(4)
    kept = chosen_by_engine("random", run)
    assert kept == chosen_by_engine("random", run)
    for prompt, frames in zip(PROMPTS, kept, strict=True):
        for (start, end), layers in zip(prompt.spans, frames, strict=True):
            # What rounding leaves, fewer tokens than there are screenshots, is drawn for.
            assert all(abs(len(layer) - 0.3 * (end - start)) <= max(1, len(prompt.frames) - 1) for layer in layers)
    assert kept[0][0][0] != kept[0][0][1]


def test_every_policy_has_a_rule_or_a_test_of_its_own() -> None:
    assert set(policy_names()) == RULES.keys() | ELSEWHERE
    assert not set(REFUSED) & set(policy_names())
