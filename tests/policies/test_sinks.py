"""Sinks: found by what their layer inputs are before the norm, and set apart from everything else."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from star_kv_sglang.engine.plan import equal_shares
from star_kv_sglang.engine.sinks import MOST_SINKS
from tests.policies.by_hand import chosen_by_hand
from tests.policies.prefill import NUM_LAYERS, PROMPTS, Prefill, chosen_by_engine, make_policy, watched

# Places in the newest screenshot of the first request and in that of the second, neither a corner nor side by side.
PLANTED = ((2, 6), (2, 21)), ((0, 4),)
QUESTION_FREE = {"question_share": 0.0}


def plain(seed: int) -> Prefill:
    """A run in which the places that something will be planted at lie in the centre of the others, and go first."""
    run = Prefill.random(seed)
    hidden, value, rows, first = run.hidden.clone(), run.value.clone(), planted_rows(), 0
    for prompt in PROMPTS:
        for start, end in prompt.spans:
            span = range(first + start, first + end)
            others, planted = [r for r in span if r not in rows], [r for r in span if r in rows]
            for tensor in (hidden, value):
                tensor[:, planted] = tensor[:, others].mean(dim=1, keepdim=True)
        first += prompt.length
    return replace(run, hidden=hidden, value=value, before_norm=hidden)


def plant(run: Prefill, size: float = 400.0) -> Prefill:
    """Tokens with two massive channels behind the first layer, which the input norm brings back to others' size.

    What they hold besides, in keys and values, is as it was: nobody else's hidden state knows of them here.
    """
    before, hidden = run.before_norm.clone(), run.hidden.clone()
    for row in planted_rows():
        before[1:, row] += size * torch.eye(before.shape[2])[:2].sum(0)
        hidden[1:, row] = before[1:, row] / before[1:, row].norm(dim=-1, keepdim=True) * 30
    return replace(run, before_norm=before, hidden=hidden)


def planted_rows() -> list[int]:
    """Packed rows of what is planted."""
    rows, first = [], 0
    for prompt, places in zip(PROMPTS, PLANTED, strict=True):
        rows += [first + prompt.spans[frame][0] + place for frame, place in places]
        first += prompt.length
    return rows


def planted_in(request: int, frame: int) -> set[int]:
    """Positions of what is planted in a screenshot."""
    return {PROMPTS[request].spans[frame][0] + place for index, place in PLANTED[request] if index == frame}


def without_planted(kept: list[list[list[list[int]]]]) -> list[list[list[list[int]]]]:
    """A choice less what is planted."""
    return [
        [[[p for p in layer if p not in planted_in(r, f)] for layer in frame] for f, frame in enumerate(frames)]
        for r, frames in enumerate(kept)
    ]


@pytest.mark.parametrize("name", ["star", "distinct"])
@pytest.mark.parametrize("seed", [1, 2])
def test_sinks_stay_beside_the_budget_and_change_nothing_else(name: str, seed: int) -> None:
    """Against a run in which the planted tokens are as usual as a token can be: the others' choice is the same."""
    settings = QUESTION_FREE if name == "star" else {}
    run = plain(seed)
    kept = chosen_by_engine(name, plant(run), **settings)
    for request, frames in enumerate(kept):
        for frame, layers in enumerate(frames):
            wanted = planted_in(request, frame)
            assert all(wanted <= set(layer) for layer in layers)
            assert {len(layer) for layer in layers} == {len(layers[0])}
    assert without_planted(kept) == chosen_by_engine(name, run, **settings)


@pytest.mark.parametrize("name", ["star", "distinct"])
def test_sinks_that_are_dropped_go_first(name: str) -> None:
    settings = QUESTION_FREE if name == "star" else {}
    run = plain(3)
    kept = chosen_by_engine(name, plant(run), sinks="drop", **settings)
    assert kept == without_planted(kept) == chosen_by_engine(name, run, **settings)


def test_sinks_that_nobody_looks_for_count_as_what_they_look_like() -> None:
    run = plant(Prefill.random(4))
    assert chosen_by_engine("distinct", run, sinks="off") == chosen_by_hand("distinct", run)
    assert make_policy("star-paper").sink_ratio is None


def test_a_question_s_share_does_not_drop_a_sink() -> None:
    kept = chosen_by_engine("star", plant(Prefill.random(5)))
    for request, frames in enumerate(kept):
        for frame, layers in enumerate(frames):
            assert all(planted_in(request, frame) <= set(layer) for layer in layers)


@pytest.mark.parametrize("size", [1.0, 15.0])
def test_what_is_merely_large_is_no_sink(size: float) -> None:
    _, seen = watched(make_policy("distinct"), plant(Prefill.random(6), size))
    assert seen.sinks is not None and not seen.sinks.any()


def test_at_most_four_of_a_screenshot_the_largest_are_sinks() -> None:
    run = Prefill.random(7)
    before, start = run.before_norm.clone(), PROMPTS[0].spans[2][0]
    # The largest of each layer that is looked at differ; a token counts by its largest one.
    for place in range(7):
        before[1 + place % (NUM_LAYERS - 1), start + 3 * place] *= 1000 * (1 + place)
    _, seen = watched(make_policy("distinct"), replace(run, before_norm=before))
    assert seen.sinks is not None
    found = [seen.sinks[layer].nonzero()[:, 0].tolist() for layer in range(NUM_LAYERS)]
    assert len(found[0]) == MOST_SINKS
    assert all(found[layer] == found[0] for layer in range(NUM_LAYERS))
    ratios = []
    for place in range(7):
        span = before[:, start : start + 30].double().norm(dim=-1)
        ratios.append(max(float(span[i, 3 * place] / span[i].sort().values[14]) for i in range(1, NUM_LAYERS)))
    largest = sorted(range(7), key=lambda place: -ratios[place])[:MOST_SINKS]
    assert found[0] == sorted(start + 3 * place for place in largest)


def test_a_segment_that_holds_sinks_is_not_cut_for_them_again() -> None:
    plan, seen = watched(make_policy("distinct"), plant(Prefill.random(8)))
    assert seen.sinks is not None
    segment = plan.requests[0].segments[2]
    pruned = segment.with_apart(2).pruned_to(11)
    assert equal_shares([pruned], 9, 1) == [11]
    assert equal_shares([pruned.with_apart(0)], 9, 1) == [9]
