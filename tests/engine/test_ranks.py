"""What ranks gather and how they compare, without an engine: every rank is an object of this process."""

from __future__ import annotations

import re
from collections.abc import Sequence

import pytest
import torch

from star_kv_sglang.engine.faults import DivergedError, FaultLog
from star_kv_sglang.engine.ranks import Ranks
from star_kv_sglang.engine.stats import PolicyCounters


def together(parts: Sequence[torch.Tensor], num_groups: int) -> Ranks:
    """Rank 0 of several whose tensors are these, whatever it brings itself."""

    def gather(whole: torch.Tensor, mine: torch.Tensor) -> None:
        assert mine.numel() == parts[0].numel()
        whole.copy_(torch.cat([part.flatten() for part in parts]))

    return Ranks(len(parts), 0, num_groups, gather)


@pytest.mark.parametrize("size", [2, 4])
def test_key_heads_are_in_the_order_of_the_model(size: int) -> None:
    whole = torch.rand(3, 4, 7)
    parts = list(whole.chunk(size, dim=1))
    assert torch.equal(together(parts, 4).all_groups(parts[0]), whole)


def test_a_key_head_that_several_ranks_hold_is_the_mean_of_its_query_heads() -> None:
    """Two key heads on four ranks: ranks 0 and 1 hold the first, each with half of its query heads."""
    parts = list(torch.rand(4, 3, 1, 7))
    wanted = torch.stack([(parts[0] + parts[1]) / 2, (parts[2] + parts[3]) / 2], dim=1).squeeze(2)
    assert torch.equal(together(parts, 2).all_groups(parts[0]), wanted)


def test_one_rank_gathers_nothing() -> None:
    ranks, scores = Ranks(1, 0, 4), torch.rand(3, 4, 7)
    assert ranks.all_groups(scores) is scores
    assert ranks.mean(scores) is scores
    assert ranks.agree([scores], 0, "request a") is None


def sums(tensors: Sequence[torch.Tensor], cut: int = 0) -> torch.Tensor:
    """What a rank tells the others."""
    told: list[torch.Tensor] = []

    def gather(whole: torch.Tensor, mine: torch.Tensor) -> None:
        told.append(mine.clone())
        whole.zero_()

    Ranks(2, 0, 1, gather).agree(tensors, cut, "")
    return told[0]


def test_ranks_that_decide_alike_go_on() -> None:
    best, quotas = torch.arange(12, dtype=torch.int32).view(3, 4), torch.tensor([2], dtype=torch.int32)
    told = sums([best, quotas], 7)
    agreement = together([told, told], 1).agree([best, quotas], 7, "request a")
    assert agreement is not None
    agreement.require()


@pytest.mark.parametrize("change", ["order", "quota", "cut", "bit of a score"])
def test_ranks_that_decide_otherwise_stop_with_the_turn_and_both_sums(change: str) -> None:
    best, quotas, cut = torch.arange(12, dtype=torch.int32).view(3, 4), torch.tensor([2], dtype=torch.int32), 7
    scores = torch.rand(12)
    mine = sums([best, quotas, scores], cut)
    if change == "order":
        best = best.flip(1)
    elif change == "quota":
        quotas = quotas + 1
    elif change == "cut":
        cut = 8
    else:
        scores = scores.clone()
        scores[5] = torch.nextafter(scores[5], torch.tensor(2.0))
    theirs = sums([best, quotas, scores], cut)
    agreement = together([mine, theirs], 1).agree([best], cut, "request turn-7")
    assert agreement is not None
    with pytest.raises(DivergedError, match=r"turn of request turn-7 .*rank 0: .*rank 1: ") as caught:
        agreement.require()
    first, second = re.findall(r"rank \d: (\w{16} \w{8})", str(caught.value))
    assert first != second


def test_a_fault_that_one_rank_meets_is_not_survived() -> None:
    """The others wait for it in the next collective."""
    faults = FaultLog(PolicyCounters())
    with faults.guard("scoring", "they stay unpruned"):
        raise ValueError("mine alone")
    faults.is_alone = False
    with pytest.raises(ValueError, match="mine alone") as caught, faults.guard("scoring", "they stay unpruned"):
        raise ValueError("mine alone")
    assert "one of several tensor parallel ranks" in caught.value.__notes__[0]


def test_a_fault_that_decides_nothing_is_survived_by_each_rank() -> None:
    """A disk that is full where one rank writes traces."""
    counters = PolicyCounters()
    faults = FaultLog(counters)
    faults.is_alone = False
    with faults.guard("writing a trace", "it is incomplete", decides=False):
        raise OSError("no space left")
    assert counters.num_pruner_faults == 1


def test_a_divergence_is_not_survived() -> None:
    with pytest.raises(DivergedError), FaultLog(PolicyCounters()).guard("pruning", "it stays unpruned"):
        raise DivergedError("ranks")
