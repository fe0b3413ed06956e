from __future__ import annotations

import pytest
import torch

from star_kv_sglang.algorithm.selection import paper_topk


def test_the_window_and_the_best_of_the_rest_are_kept() -> None:
    assert paper_topk(torch.tensor([0.1, 0.9, 0.5, 0.7]), window=2, capacity=4).tolist() == [1, 3, 4, 5]


def test_ties_go_to_the_lower_position() -> None:
    assert paper_topk(torch.ones(6), window=1, capacity=4).tolist() == [0, 1, 2, 6]


@pytest.mark.parametrize("capacity", [5, 6, 100])
def test_a_short_prompt_is_kept_whole(capacity: int) -> None:
    assert paper_topk(torch.zeros(3), window=2, capacity=capacity).tolist() == [0, 1, 2, 3, 4]


def test_a_capacity_below_the_window_is_refused() -> None:
    with pytest.raises(ValueError, match="raise the budget"):
        paper_topk(torch.zeros(30), window=8, capacity=5)
