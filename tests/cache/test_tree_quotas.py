"""The threshold of the tree-wide budget against a slow search over every score."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch

from star_kv_sglang.engine import tree_quotas as module
from star_kv_sglang.engine.tree_quotas import Contest
from star_kv_sglang.triton_ops.reference_ops import ReferenceOps


def tree_quotas(
    contest: Contest, scores: torch.Tensor, slots: torch.Tensor, *, budget: int, page_size: int
) -> npt.NDArray[np.int64]:
    return module.tree_quotas(contest, scores, slots, ReferenceOps, budget=budget, page_size=page_size)


def contest_of(
    lengths: list[int], *, floor: int = 0, branches: list[int] | None = None, branch_floors: list[int] | None = None
) -> Contest:
    size = len(lengths)
    names = np.array(branches or range(size), np.int64)
    return Contest(
        idents=np.arange(3, 3 + 2 * size, 2, dtype=np.int64),
        num_live=np.array(lengths, np.int64),
        floors=np.minimum(floor, np.array(lengths, np.int64)),
        branches=names,
        branch_floors=np.array(branch_floors or [0] * (int(names.max(initial=-1)) + 1), np.int64),
    )


def pools_of(contest: Contest, num_layers: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores and slot numbers of the segments in scattered slots; other slots belong to others, or to nobody."""
    generator = torch.Generator().manual_seed(seed)
    ids = np.repeat(contest.idents, contest.num_live)
    others = np.array([0, 0, 2, 4, 9_999])
    slots = torch.from_numpy(np.concatenate([ids, others])).to(torch.int32)
    slots = slots[torch.randperm(len(slots), generator=generator)]
    scores = torch.randn(num_layers, len(slots), generator=generator).to(torch.float16)
    return scores, slots


def slow_quotas(contest: Contest, scores: torch.Tensor, slots: torch.Tensor, threshold: float) -> list[int]:
    quotas = []
    for ident, live, floor in zip(contest.idents, contest.num_live, contest.floors, strict=True):
        above = int((scores[:, slots == int(ident)] > threshold).sum())
        quotas.append(min(int(live), max(-(-above // len(scores)), int(floor))))
    return quotas


@pytest.mark.parametrize("num_layers", [1, 3])
@pytest.mark.parametrize("floor", [0, 2])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.93])
def test_quotas_are_those_of_the_best_threshold(num_layers: int, floor: int, share: float) -> None:
    contest = contest_of([17, 1, 40, 9, 5], floor=floor)
    scores, slots = pools_of(contest, num_layers, seed=int(100 * share))
    budget = max(int(share * 72), contest.least + 1)
    got = tree_quotas(contest, scores, slots, budget=budget, page_size=1)
    thresholds = sorted({float(x) for x in scores.flatten()} | {-torch.inf}, reverse=True)
    fitting = [q for t in thresholds if sum(q := slow_quotas(contest, scores, slots, t)) <= budget]
    assert (got >= fitting[-1]).all(), "a lower threshold fits the budget"
    assert got.sum() <= budget
    if num_layers == 1:
        assert got.sum() == budget


def test_equal_scores_use_the_whole_budget() -> None:
    contest = contest_of([10, 10])
    scores, slots = pools_of(contest, 2, seed=0)
    assert tree_quotas(contest, torch.zeros_like(scores), slots, budget=13, page_size=1).tolist() == [10, 3]


def test_branches_compete_and_the_stronger_keeps_more() -> None:
    contest = contest_of([10, 10], floor=1)
    scores, slots = pools_of(contest, 2, seed=0)
    scores = torch.where(slots == 5, scores.abs() + 1, -scores.abs())
    assert tree_quotas(contest, scores, slots, budget=11, page_size=1).tolist() == [1, 10]


def test_weights_move_the_threshold() -> None:
    contest = contest_of([10, 10])
    scores, slots = pools_of(contest, 2, seed=0)
    ones = torch.ones_like(scores)
    weighted = Contest(
        contest.idents,
        contest.num_live,
        contest.floors,
        contest.branches,
        contest.branch_floors,
        np.array([0.5, 1.0], np.float32),
    )
    assert tree_quotas(weighted, ones, slots, budget=12, page_size=1).tolist() == [2, 10]


def test_a_budget_below_the_floors_leaves_the_floors() -> None:
    contest = contest_of([10, 3, 0], floor=4)
    scores, slots = pools_of(contest, 2, seed=0)
    assert tree_quotas(contest, scores, slots, budget=2, page_size=1).tolist() == [4, 3, 0]


def test_a_branch_floor_goes_to_the_newest_screenshot() -> None:
    contest = contest_of([10, 10, 10, 10], branches=[0, 0, 1, 1], branch_floors=[6, 6])
    scores, slots = pools_of(contest, 2, seed=0)
    scores = torch.where((slots == 3) | (slots == 5), scores.abs() + 1, -scores.abs())
    quotas = tree_quotas(contest, scores, slots, budget=24, page_size=1)
    assert quotas[2] == 0 and quotas[3] == 6 and quotas.sum() <= 24


@pytest.mark.parametrize("budget", [16, 40, 79])
def test_pages_are_kept_whole(budget: int) -> None:
    contest = contest_of([32, 48, 16])
    scores, slots = pools_of(contest, 3, seed=budget)
    quotas = tree_quotas(contest, scores, slots, budget=budget, page_size=16)
    assert (quotas % 16 == 0).all() and budget - 32 < quotas.sum() <= budget


def test_nobody_competes() -> None:
    contest = contest_of([])
    scores, slots = pools_of(contest, 2, seed=0)
    assert tree_quotas(contest, scores, slots, budget=5, page_size=1).tolist() == []
