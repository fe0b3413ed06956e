from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from star_kv_sglang.triton_ops.prior_factors import op, reference
from tests.assertions import assert_close
from tests.ops.batches import generator

if TYPE_CHECKING:
    from tests.ops.conftest import Count

RESOLUTION = 1e-4


@pytest.mark.parametrize("each", [True, False], ids=["each", "all_the_same"])
@pytest.mark.parametrize("groups", [1, 2, 3, 8])
@pytest.mark.parametrize("tau", [1.0, 0.25])
def test_kernel_equals_reference(
    groups: int, each: bool, tau: float, device: torch.device, count_launches: Count
) -> None:
    launches = count_launches(op)
    information = torch.rand(4, 3, groups, generator=generator(groups)).to(device)
    shares = torch.tensor([[0.0], [0.5], [0.2]], device=device) if each else 0.3
    got, want = (ops.prior_factors(information, shares, tau=tau, resolution=RESOLUTION) for ops in (op, reference))
    assert launches == {"prior_factors_kernel": 1}
    for name, mine, other in zip(("weights", "factors"), got, want, strict=True):
        assert_close(name, mine, other)


def test_groups_that_tell_the_same_count_the_same(device: torch.device) -> None:
    information = torch.tensor([[[2.0, 2.0 + RESOLUTION / 2]], [[2.0, 2.1]]], device=device)
    for ops in (op, reference):
        weights, factors = ops.prior_factors(information, 0.5, tau=1.0, resolution=RESOLUTION)
        assert weights[0, 0].tolist() == [0.5, 0.5]
        assert factors[0, 0].tolist() == [1.0, 1.0]
        assert factors[1, 0, 1] > 1 > factors[1, 0, 0]
        assert factors.mean(dim=-1).tolist() == [pytest.approx([1.0])] * 2


def test_nobody_is_no_launch(device: torch.device, count_launches: Count) -> None:
    launches = count_launches(op)
    weights, factors = op.prior_factors(torch.zeros(2, 0, 3, device=device), 0.5, tau=1.0, resolution=RESOLUTION)
    assert weights.shape == factors.shape == (2, 0, 3)
    assert launches == {"prior_factors_kernel": 0}


def test_wrong_arguments_are_refused(device: torch.device) -> None:
    information = torch.ones(2, 3, 4, device=device)
    with pytest.raises(ValueError, match=r"prior_weights has shape \[3\]"):
        op.prior_factors(information, torch.ones(3, device=device), tau=1.0, resolution=RESOLUTION)
    with pytest.raises(ValueError, match="tau is 0"):
        op.prior_factors(information, 0.5, tau=0, resolution=RESOLUTION)
    with pytest.raises(TypeError, match="information is float16"):
        op.prior_factors(information.half(), 0.5, tau=1.0, resolution=RESOLUTION)
