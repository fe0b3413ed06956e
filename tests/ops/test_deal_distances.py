from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from star_kv_sglang.triton_ops.deal_distances import op, reference
from tests.assertions import assert_close
from tests.ops.batches import generator

if TYPE_CHECKING:
    from tests.ops.conftest import Count


@pytest.mark.parametrize(("groups", "tokens"), [(1, 7), (2, 513), (4, 1024), (3, 1)])
def test_kernel_equals_reference(groups: int, tokens: int, device: torch.device, count_launches: Count) -> None:
    launches = count_launches(op)
    source = generator(groups)
    distances = torch.rand(3, tokens + 5, generator=source).to(device)[:, 2 : 2 + tokens]
    own = torch.rand(3, groups, tokens + 3, generator=source).to(device)[:, :, 1 : 1 + tokens]
    own[0, :, 0] = 0.0
    got, want = torch.full((2, 3, groups, tokens + 4), 7.0, device=device)
    op.deal_distances(distances, own, got[:, :, 2 : 2 + tokens])
    reference.deal_distances(distances, own, want[:, :, 2 : 2 + tokens])
    assert launches == {"deal_distances_kernel": 1}
    assert_close("saliency", got, want)
    assert bool((got[:, :, :2] == 7).all())


def test_the_mean_over_the_groups_is_the_distance(device: torch.device) -> None:
    distances = torch.tensor([[2.0, 3.0]], device=device)
    own = torch.tensor([[[1.0, 0.0], [3.0, 0.0]]], device=device)
    for ops in (op, reference):
        got = ops.deal_distances(distances, own, torch.empty_like(own))
        assert got.tolist() == [[[1.0, 3.0], [3.0, 3.0]]]


def test_no_tokens_is_no_launch(device: torch.device, count_launches: Count) -> None:
    launches = count_launches(op)
    nothing = torch.zeros(2, 3, 0, device=device)
    assert op.deal_distances(nothing[:, 0], nothing, nothing.clone()).shape == (2, 3, 0)
    assert launches == {"deal_distances_kernel": 0}


def test_wrong_arguments_are_refused(device: torch.device) -> None:
    distances, own = torch.ones(2, 4, device=device), torch.ones(2, 3, 4, device=device)
    with pytest.raises(ValueError, match=r"out has shape \[2, 3, 3\]"):
        op.deal_distances(distances, own, own[..., :3])
    with pytest.raises(TypeError, match="own is float16"):
        op.deal_distances(distances, own.half(), torch.empty_like(own))
    with pytest.raises(ValueError, match="distances must be contiguous along its tokens"):
        op.deal_distances(torch.ones(4, 2, device=device).T, own, torch.empty_like(own))
