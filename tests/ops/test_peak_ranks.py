from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from star_kv_sglang.triton_ops.peak_ranks import op, reference
from tests.assertions import assert_close
from tests.ops.batches import generator

if TYPE_CHECKING:
    from tests.ops.conftest import Count


def _screen(
    layers: int, rows: int, cols: int, live: int, device: torch.device, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Distances with ties, places and factors of which every product is exact in float32."""
    source = generator(seed)
    distances = torch.randint(0, 40 * live, (layers, live), generator=source) / 64
    places = torch.stack([torch.randperm(rows * cols, generator=source)[:live].sort().values for _ in range(layers)])
    factors = torch.randint(2, 5, (layers, live), generator=source) / 4
    return distances.to(device), places.to(device), factors.to(device)


@pytest.mark.parametrize("beside_peak", [0.5, 1.0])
@pytest.mark.parametrize("with_factors", [True, False], ids=["factors", "plain"])
@pytest.mark.parametrize(
    ("rows", "cols", "live"), [(1, 1, 1), (1, 7, 7), (5, 1, 3), (9, 11, 99), (17, 19, 200), (26, 40, 1040)]
)
def test_kernel_equals_reference(
    rows: int,
    cols: int,
    live: int,
    with_factors: bool,
    beside_peak: float,
    device: torch.device,
    count_launches: Count,
) -> None:
    launches = count_launches(op)
    distances, offsets, factors = _screen(3, rows, cols, live, device)
    given = (distances, offsets, factors if with_factors else None)
    got = op.peak_ranks(*given, rows=rows, cols=cols, beside_peak=beside_peak)
    want = reference.peak_ranks(*given, rows=rows, cols=cols, beside_peak=beside_peak)
    assert launches == {"counted_kernel": 1, "ranks_kernel": 1}
    for name, mine, other in zip(("ranks", "beside"), got, want, strict=True):
        assert_close(name, mine, other)


def test_a_view_into_a_batch_is_read(device: torch.device) -> None:
    distances, offsets, _ = _screen(2, 6, 7, 42, device)
    wide, places = torch.full((2, 60), 1e9, device=device), torch.full((2, 60), -1, dtype=torch.int16, device=device)
    wide[:, 10:52], places[:, 10:52] = distances, offsets.short()
    got, _ = op.peak_ranks(wide[:, 10:52], places[:, 10:52], None, rows=6, cols=7, beside_peak=0.5)
    want, _ = reference.peak_ranks(distances, offsets, None, rows=6, cols=7, beside_peak=0.5)
    assert_close("ranks", got, want)


def test_ranks_are_those_of_a_sort_and_equal_ones_stand_in_order(device: torch.device) -> None:
    distances = torch.tensor([[2.0, 9.0, 2.0, -1.0, 5.0, float("nan"), -0.0, 0.0]], device=device)
    offsets = torch.arange(8, device=device)[None]
    for ops in (op, reference):
        ranks, _ = ops.peak_ranks(distances, offsets, None, rows=1, cols=8, beside_peak=1.0)
        assert (ranks * 7).round().int().tolist() == [[4, 6, 3, 0, 5, 7, 2, 1]]


def test_who_stands_beside_a_peak_counts_less(device: torch.device) -> None:
    # 8 is a peak, 6 beside it; 5 lies two places from the peak, beside 6, which is none.
    distances = torch.tensor([[8.0, 6.0, 5.0, 4.5]], device=device)
    offsets = torch.tensor([[0, 1, 2, 9]], device=device)
    for ops in (op, reference):
        ranks, beside = ops.peak_ranks(distances, offsets, None, rows=2, cols=5, beside_peak=0.5)
        assert (ranks * 3).round().int().tolist() == [[3, 0, 2, 1]]
        assert beside.tolist() == [[0, 1, 0, 0]]


def test_beside_a_peak_is_not_just_beside_something_higher(device: torch.device) -> None:
    distances = torch.tensor([[9.0, 8.0, 2.0, 1.0, 3.0]], device=device)
    for ops in (op, reference):
        _, beside = ops.peak_ranks(
            distances, torch.arange(5, device=device)[None], None, rows=1, cols=5, beside_peak=1.0
        )
        assert beside.tolist() == [[0, 1, 0, 1, 0]]


def test_an_empty_place_is_no_peak(device: torch.device) -> None:
    """Tokens stand at two far corners; what lies between is gone."""
    distances, offsets = torch.tensor([[2.0, 5.0, 4.0]], device=device), torch.tensor([[0, 23, 24]], device=device)
    for ops in (op, reference):
        _, beside = ops.peak_ranks(distances, offsets, None, rows=5, cols=5, beside_peak=1.0)
        assert beside.tolist() == [[0, 0, 1]]


def test_the_highest_rank_is_exactly_one(device: torch.device) -> None:
    for live in (7, 11, 53, 1197):
        distances = torch.rand(1, live, generator=generator(live)).to(device)
        offsets = torch.arange(live, device=device)[None]
        ranks, _ = op.peak_ranks(distances, offsets, None, rows=1, cols=live, beside_peak=0.9)
        # On a GPU the reference multiplies by the rounded reciprocal of the last rank.
        want, _ = reference.peak_ranks(distances.cpu(), offsets.cpu(), None, rows=1, cols=live, beside_peak=0.9)
        assert torch.equal(ranks.cpu(), want)
        assert float(ranks.max()) == 1.0


def test_a_place_outside_of_the_grid_touches_nobody(device: torch.device) -> None:
    distances = torch.tensor([[3.0, 1.0, 2.0], [3.0, 1.0, 2.0]], device=device)
    offsets = torch.tensor([[0, 1, 3], [0, 1, -1]], device=device)
    ranks, beside = op.peak_ranks(distances, offsets, None, rows=1, cols=3, beside_peak=0.5)
    assert beside.tolist() == [[0, 1, 0], [0, 1, 0]]
    assert (ranks * 2).round().tolist() == [[2, 0, 1], [2, 0, 1]]


def test_an_empty_screenshot_is_no_launch(device: torch.device, count_launches: Count) -> None:
    launches = count_launches(op)
    nothing = torch.zeros(2, 0, device=device)
    ranks, beside = op.peak_ranks(nothing, nothing.long(), None, rows=1, cols=1, beside_peak=0.5)
    assert ranks.shape == beside.shape == (2, 0)
    assert launches == {"counted_kernel": 0, "ranks_kernel": 0}


def test_wrong_arguments_are_refused(device: torch.device) -> None:
    distances, offsets, factors = _screen(2, 3, 3, 9, device)
    with pytest.raises(TypeError, match="distances is float16"):
        op.peak_ranks(distances.half(), offsets, None, rows=3, cols=3, beside_peak=0.5)
    with pytest.raises(ValueError, match=r"factors has shape \[2, 8\]"):
        op.peak_ranks(distances, offsets, factors[:, :8], rows=3, cols=3, beside_peak=0.5)
    with pytest.raises(ValueError, match="distances must be contiguous along its tokens"):
        op.peak_ranks(distances.T.contiguous().T, offsets, None, rows=3, cols=3, beside_peak=0.5)
