from __future__ import annotations

from statistics import median_low
from typing import TYPE_CHECKING

import pytest
import torch

from star_kv_sglang.triton_ops.frame_means import op as means_op
from star_kv_sglang.triton_ops.frame_means import reference as means_reference
from star_kv_sglang.triton_ops.norm_excess import op, reference
from tests.assertions import assert_close
from tests.ops.batches import generator, indptr

if TYPE_CHECKING:
    from tests.ops.conftest import Count


def _norms(sizes: list[int], device: torch.device, seed: int = 0) -> torch.Tensor:
    """Most of one size, some hundreds of times as large, some 0."""
    norms = torch.rand(sum(sizes), generator=generator(seed)) + 0.5
    place = torch.rand(sum(sizes), generator=generator(seed + 1))
    return torch.where(place < 0.1, 0.0, torch.where(place > 0.9, 500 * norms, norms)).to(device)


@pytest.mark.parametrize("sizes", [[1], [2], [33], [31, 0, 70], [5, 20_000]], ids=lambda sizes: f"frames{sizes}")
def test_kernel_equals_reference(sizes: list[int], device: torch.device, count_launches: Count) -> None:
    launches = count_launches(op)
    norms, bounds = _norms(sizes, device), indptr(sizes, device)
    known = (600 * torch.rand(len(norms), generator=generator(5)) ** 8).to(device)
    got = op.norm_excess(norms, bounds, known.clone(), max_rows=max(sizes))
    want = reference.norm_excess(norms, bounds, known.clone(), max_rows=max(sizes))
    assert launches == {"norm_excess_kernel": 1}
    assert_close("excess", got, want)


def test_reference_is_the_ratio_to_the_lower_median(device: torch.device) -> None:
    norms = _norms([6, 9], device, seed=3) + 0.1
    got = reference.norm_excess(norms, indptr([6, 9], device), torch.zeros(15, device=device), max_rows=9)
    for first, last in ((0, 6), (6, 15)):
        usual = median_low(norms[first:last].tolist())
        assert got[first:last].tolist() == pytest.approx([norm / usual for norm in norms[first:last].tolist()])


def test_a_blank_frame_has_no_excess(device: torch.device) -> None:
    norms = torch.tensor([0.0, 0.0, 0.0, 9.0], device=device)
    for ops in (op, reference):
        assert not ops.norm_excess(norms, indptr([4], device), torch.zeros(4, device=device), max_rows=4).any()


def test_no_frames_is_no_launch(device: torch.device, count_launches: Count) -> None:
    launches = count_launches(op)
    nothing = torch.zeros(0, device=device)
    assert op.norm_excess(nothing, indptr([], device), nothing, max_rows=0).shape == (0,)
    assert launches == {"norm_excess_kernel": 0}


def test_norms_must_be_float32(device: torch.device) -> None:
    with pytest.raises(TypeError, match="norms is float16"):
        op.norm_excess(torch.zeros(3, device=device).half(), indptr([3], device), torch.zeros(3), max_rows=3)


@pytest.mark.parametrize("channels", [1, 100], ids=lambda c: f"c{c}")
@pytest.mark.parametrize("sizes", [[1], [33], [31, 0, 70]], ids=["one_row", "two_blocks", "empty_frame"])
def test_means_leave_out_what_exceeds(sizes: list[int], channels: int, device: torch.device) -> None:
    hidden = (3 + torch.randn(sum(sizes), channels, generator=generator(0))).to(device)
    excess = (20 * torch.rand(sum(sizes), generator=generator(1))).to(device)
    # One frame of which nothing counts.
    excess[: sizes[0]] = 11.0 if len(sizes) > 1 else excess[: sizes[0]]
    hidden = torch.where(excess[:, None] > 10.0, 1e6 * hidden, hidden)
    bounds = indptr(sizes, device)
    got = means_op.frame_means(hidden, bounds, excess, max_rows=max(sizes), most_excess=10.0).clone()
    want = means_reference.frame_means(hidden, bounds, excess, max_rows=max(sizes), most_excess=10.0)
    assert_close("means", got, want)
    assert bool((want.abs() < 10).all())
    small = torch.where(excess[:, None] > 10.0, 0.0, hidden)
    again = means_op.frame_means(small, bounds, excess, max_rows=max(sizes), most_excess=10.0)
    assert torch.equal(again, got)
