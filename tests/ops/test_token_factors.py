from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from star_kv_sglang.triton_ops.token_factors import op, reference
from tests.assertions import assert_close
from tests.ops.batches import generator

if TYPE_CHECKING:
    from tests.ops.conftest import Count


@pytest.mark.parametrize("with_copies", [True, False], ids=["copies", "no_copies"])
@pytest.mark.parametrize(("groups", "tokens"), [(1, 5), (2, 513), (4, 1024), (3, 1)])
def test_kernel_equals_reference(
    groups: int, tokens: int, with_copies: bool, device: torch.device, count_launches: Count
) -> None:
    launches = count_launches(op)
    source = generator(groups)
    wide = (torch.rand(3, groups, tokens + 9, generator=source) * 4).round().to(device)
    factors, stability = (torch.rand(3, 2, groups, generator=source).to(device)[:, 1] for _ in range(2))
    copies = (torch.rand(3, tokens, generator=source) > 0.5).float().to(device) if with_copies else None
    given = (wide[:, :, 4 : 4 + tokens], factors, stability, copies)
    got, want = (ops.token_factors(*given, kept_before=0.4) for ops in (op, reference))
    assert launches == {"token_factors_kernel": 1}
    assert_close("factors", got, want)


def test_of_equal_groups_the_first_counts_and_copies_by_how_stable_it_is(device: torch.device) -> None:
    saliency = torch.tensor([[[1.0, 2.0], [1.0, 3.0]]], device=device)
    factors, stability = torch.tensor([[0.5, 2.0]], device=device), torch.tensor([[1.0, 0.5]], device=device)
    for ops in (op, reference):
        got = ops.token_factors(saliency, factors, stability, torch.ones(1, 2, device=device), kept_before=0.8)
        assert got.tolist() == [pytest.approx([0.5 * 0.8, 2.0 * 0.9])]


def test_no_tokens_is_no_launch(device: torch.device, count_launches: Count) -> None:
    launches = count_launches(op)
    groups = torch.ones(2, 3, device=device)
    assert op.token_factors(torch.zeros(2, 3, 0, device=device), groups, groups, None, kept_before=1).shape == (2, 0)
    assert launches == {"token_factors_kernel": 0}


def test_wrong_arguments_are_refused(device: torch.device) -> None:
    saliency, groups = torch.ones(2, 3, 4, device=device), torch.ones(2, 3, device=device)
    with pytest.raises(ValueError, match=r"stability has shape \[2, 2\]"):
        op.token_factors(saliency, groups, groups[:, :2], None, kept_before=1)
    with pytest.raises(TypeError, match="saliency is float64"):
        op.token_factors(saliency.double(), groups, groups, None, kept_before=1)
    with pytest.raises(ValueError, match="copies must be contiguous"):
        op.token_factors(saliency, groups, groups, torch.ones(2, 8, device=device)[:, ::2], kept_before=1)
    with pytest.raises(ValueError, match="saliency must be contiguous along its tokens"):
        op.token_factors(torch.ones(2, 4, 3, device=device).mT, groups, groups, None, kept_before=1)
