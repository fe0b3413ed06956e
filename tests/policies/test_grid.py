"""Ranks and peaks on a screenshot of which tokens are missing."""

from __future__ import annotations

import pytest
import torch

from star_kv_sglang.policies.base.grid import (
    is_peak,
    merged_ranks,
    places,
    places_of_ranks,
    ranks,
)


def test_ranks_are_spread_evenly_and_the_earlier_of_equals_is_higher() -> None:
    assert ranks(torch.tensor([[2.0, 9.0, 2.0, -1.0, 5.0]])).tolist() == [[0.5, 1.0, 0.25, 0.0, 0.75]]


def test_places_count_from_the_highest() -> None:
    assert places(torch.tensor([[2.0, 9.0, 2.0, -1.0, 5.0]])).tolist() == [[2, 0, 3, 4, 1]]


@pytest.mark.parametrize("num_tokens", [1, 2, 2_691, 100_000])
def test_places_of_ranks_are_the_places(num_tokens: int) -> None:
    scores = torch.randint(0, 500, (2, num_tokens), generator=torch.Generator().manual_seed(0)).float()
    assert torch.equal(places_of_ranks(ranks(scores)), places(scores))


def test_the_only_token_has_a_rank() -> None:
    assert ranks(torch.tensor([[3.0]])).tolist() == [[0.0]]


def test_a_peak_has_no_higher_neighbour_diagonals_and_edges_included() -> None:
    screen = torch.tensor([[5.0, 1.0, 2.0], [1.0, 4.0, 1.0], [1.0, 1.0, 3.0], [0.0, 0.0, 0.0]])
    places = torch.arange(12)[None]
    peaks = is_peak(screen.view(1, -1), places, rows=4, cols=3)
    assert peaks.view(4, 3).nonzero().tolist() == [[0, 0]]


def test_rows_do_not_wrap_around() -> None:
    screen = torch.tensor([[0.0, 0.0, 0.0, 1.0], [2.0, 0.0, 0.0, 0.0]])
    peaks = is_peak(screen.view(1, -1), torch.arange(8)[None], rows=2, cols=4)
    assert peaks[0, 3] and peaks[0, 4]


def test_a_pruned_neighbour_does_not_count_and_layers_hold_other_tokens() -> None:
    """Layer 0 still has the higher neighbour at place 1, layer 1 has lost it."""
    scores = torch.tensor([[1.0, 2.0, 0.5], [1.0, 0.3, 0.5]])
    places = torch.tensor([[0, 1, 7], [0, 6, 7]])
    assert is_peak(scores, places, rows=3, cols=3).tolist() == [[False, True, True], [True, False, True]]


FIRST = torch.tensor([[9.0, 8.0, 7.0, 6.0, 5.0, 4.0]])
SECOND = torch.tensor([[1.0, 2.0, 3.0, 4.0, 9.0, 8.0]])


@pytest.mark.parametrize(
    ("share", "order"),
    [
        pytest.param(0.0, [4, 5, 3, 2, 1, 0], id="second_alone"),
        pytest.param(1.0, [0, 1, 2, 3, 4, 5], id="first_alone"),
        pytest.param(0.5, [0, 4, 1, 5, 2, 3], id="in_turns"),
        pytest.param(0.25, [4, 5, 0, 3, 2, 1], id="one_in_four"),
    ],
)
def test_a_list_is_filled_from_two(share: float, order: list[int]) -> None:
    merged = merged_ranks(FIRST, SECOND, share)
    assert merged.argsort(dim=1, descending=True, stable=True).tolist() == [order]
    assert merged.amax() == 1 and merged.amin() == 0


def test_what_both_lists_name_counts_once() -> None:
    """Token 0 leads both: the next of either follow it."""
    merged = merged_ranks(torch.tensor([[9.0, 8.0, 1.0, 0.0]]), torch.tensor([[9.0, 0.0, 1.0, 8.0]]), 0.5)
    assert merged.argsort(dim=1, descending=True, stable=True).tolist() == [[0, 1, 3, 2]]
