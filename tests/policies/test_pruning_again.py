"""What is stored for later cuts, when all branches compete and no question is there."""

from __future__ import annotations

import math
from dataclasses import replace
from statistics import median_low
from typing import Any

import pytest
import torch

from star_kv_sglang.policies.base.interface import Observation, PolicyScores, Split
from star_kv_sglang.triton_ops.reference_ops import ReferenceOps
from tests.policies.by_hand import Axes, entropy_temperature
from tests.policies.prefill import NUM_LAYERS, Prefill, make_policy, watched


def stored_scores(name: str, run: Prefill) -> tuple[Observation, PolicyScores, torch.Tensor]:
    policy = make_policy(name)
    _, seen = watched(policy, run)
    scored = policy.score(seen)
    again = scored.for_pruning_again
    return seen, scored, scored.calibrated if again is None else again


def shown_by_hand(seen: Observation, request: int, index: int, layer: int) -> int:
    """Tokens of one layer's screenshot more than twice as far out as the usual one, and not beside a peak."""
    span, frame = seen.frame(request, index), seen.layouts[request].frames[index]
    distances = dict(zip(seen.frame_offsets[layer, span].tolist(), seen.frame_norms[layer, span].tolist(), strict=True))

    def near(place: int) -> list[int]:
        row, col = divmod(place, frame.cols)
        around = [(row + dy, col + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if dy or dx]
        return [y * frame.cols + x for y, x in around if 0 <= y < frame.rows and 0 <= x < frame.cols]

    peaks = {place for place, value in distances.items() if all(value >= distances[one] for one in near(place))}
    usual = median_low(distances.values())
    return sum(
        value > 2 * usual and (place in peaks or not peaks.intersection(near(place)))
        for place, value in distances.items()
    )


def spiky(seed: int) -> Prefill:
    """Some tokens stand out far, in every layer others."""
    run = Prefill.random(seed)
    far = torch.rand(run.hidden.shape[:2], generator=torch.Generator().manual_seed(seed)) < 0.3
    return replace(run, hidden=torch.where(far[..., None], 9 * run.hidden, run.hidden))


@pytest.mark.parametrize("name", ["star", "distinct"])
def test_a_token_s_place_counts_in_what_its_screenshot_shows(name: str) -> None:
    seen, scored, stored = stored_scores(name, spiky(1))
    counts = set()
    for request, layout in enumerate(seen.layouts):
        for index, frame in enumerate(layout.frames):
            span = seen.frame(request, index)
            order = scored.calibrated[:, span].argsort(dim=1, descending=True, stable=True)
            for layer in range(NUM_LAYERS):
                shown = max(1, shown_by_hand(seen, request, index, layer))
                counts.add(shown)
                best_first = stored[layer, span][order[layer]].tolist()
                # `distinct` is without axes.
                temperature = entropy_temperature(seen.frame_norms[layer, span], Axes(temperature=name == "star"))
                worth = [(shown / (shown + place)) ** (1 / temperature) for place in range(frame.num_live)]
                assert best_first == pytest.approx(worth, rel=1e-5)
    assert len(counts) > 2


@pytest.mark.parametrize("temporal", [True, False])
def test_screenshots_of_a_prompt_compete_by_their_places_and_their_age(temporal: bool) -> None:
    policy = make_policy("star", question_share=0.0, temporal=temporal)
    _, seen = watched(policy, spiky(3))
    scored = policy.score(replace(seen, split=Split.BY_SCORE))
    for request, layout in enumerate(seen.layouts):
        for index, frame in enumerate(layout.frames):
            span, worth = seen.frame(request, index), torch.zeros(NUM_LAYERS, frame.num_live, dtype=torch.float64)
            left = math.exp(-0.1 * (len(layout.frames) - 1 - index)) if temporal else 1.0
            for layer in range(NUM_LAYERS):
                shown = max(1, shown_by_hand(seen, request, index, layer))
                temperature = entropy_temperature(seen.frame_norms[layer, span], Axes())
                ranked = scored.calibrated[layer, span].tolist()
                for token, place in enumerate(sorted(range(frame.num_live), key=lambda i: -ranked[i])):
                    worth[layer, place] = (left * shown / (shown + token)) ** (1 / temperature)
            assert torch.allclose(scored.layer_mean[span].double(), worth.mean(dim=0), rtol=1e-5)


@pytest.mark.parametrize("name", ["star", "distinct"])
def test_what_is_stored_is_not_computed_again(name: str) -> None:
    policy = make_policy(name)
    _, before = watched(policy, spiky(5))
    # Scoring may write to the attention.
    attention = None if before.attention is None else before.attention.clone()
    seen = replace(before, skip_storing=frozenset({(0, 0), (1, 1)}), attention=attention)
    stored = policy.score(before).for_pruning_again
    again = policy.score(seen).for_pruning_again
    assert stored is not None and again is not None
    for request, layout in enumerate(seen.layouts):
        for index in range(len(layout.frames)):
            span = seen.frame(request, index)
            if (request, index) in seen.skip_storing:
                assert not again[:, span].any()
            else:
                assert torch.equal(again[:, span], stored[:, span])


@pytest.mark.parametrize("name", ["star", "distinct"])
def test_a_screenshot_is_ranked_once(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    looked_at, find = [], ReferenceOps.peak_ranks

    def watched_ranks(distances: torch.Tensor, *given: Any, **more: Any) -> tuple[torch.Tensor, torch.Tensor]:
        looked_at.append(distances.data_ptr())
        return find(distances, *given, **more)

    monkeypatch.setattr(ReferenceOps, "peak_ranks", staticmethod(watched_ranks))
    seen, _, _ = stored_scores(name, spiky(6))
    assert len(looked_at) == len(set(looked_at)) == sum(len(layout.frames) for layout in seen.layouts)


def test_a_screenshot_of_larger_activations_is_worth_no_more() -> None:
    run = spiky(2)
    _, _, stored = stored_scores("distinct", run)
    _, _, scaled = stored_scores("distinct", replace(run, hidden=run.hidden * 8))
    assert torch.allclose(stored, scaled, rtol=1e-4)


def test_other_policies_store_what_the_prompt_said() -> None:
    _, scored, stored = stored_scores("star-paper", Prefill.random(3))
    assert stored is scored.calibrated


def test_a_blank_screenshot_has_finite_scores() -> None:
    run = Prefill.random(4)
    _, _, stored = stored_scores("distinct", replace(run, hidden=torch.zeros_like(run.hidden)))
    assert stored.isfinite().all()
