from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from star_kv_sglang.triton_ops.group_distances import op, reference
from tests.assertions import assert_close
from tests.ops.batches import generator, indptr, scattered_slots

if TYPE_CHECKING:
    from tests.ops.conftest import Count

LAYERS, GROUPS = 3, 2


def _inputs(
    sizes: list[int], head_dim: int, dtype: torch.dtype, device: torch.device, seed: int = 0
) -> tuple[list[torch.Tensor], torch.Tensor, torch.Tensor, torch.Tensor]:
    """Pools whose unused slots hold NaN, and rows of which about a fifth do not count."""
    slots, num_slots = scattered_slots(sum(sizes), seed, device)
    pools = []
    for layer in range(LAYERS):
        pool = torch.full((num_slots, GROUPS, head_dim), float("nan"))
        pool[slots.cpu().long()] = 3 + torch.randn(len(slots), GROUPS, head_dim, generator=generator(seed + layer))
        pools.append(pool.to(device, dtype))
    counts = torch.rand(LAYERS, len(slots), generator=generator(seed + 9)) < 0.8
    return pools, slots, indptr(sizes, device), counts.to(device)


@pytest.mark.parametrize(
    "dtype",
    [torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn],
    ids=["fp32", "bf16", "fp16", "fp8"],
)
@pytest.mark.parametrize("head_dim", [16, 36], ids=lambda d: f"d{d}")
@pytest.mark.parametrize("sizes", [[1], [130], [31, 0, 70]], ids=["one_row", "three_tiles", "empty_frame"])
def test_kernel_equals_reference(
    sizes: list[int], head_dim: int, dtype: torch.dtype, device: torch.device, count_launches: Count
) -> None:
    launches = count_launches(op)
    inputs = _inputs(sizes, head_dim, dtype, device)
    got = op.group_distances(*inputs, max_rows=max(sizes))
    assert launches == {"block_sums_kernel": 1, "group_distances_kernel": 1}
    assert_close("distances", got, reference.group_distances(*inputs, max_rows=max(sizes)))


def test_reference_equals_float64(device: torch.device) -> None:
    pools, slots, bounds, counts = _inputs([5, 7], 8, torch.float32, device, seed=2)
    got = reference.group_distances(pools, slots, bounds, counts, max_rows=7)
    for layer, group, (first, last) in [(0, 0, (0, 5)), (2, 1, (5, 12))]:
        rows = pools[layer][slots[first:last].long(), group].double()
        want = (rows - rows[counts[layer, first:last]].mean(dim=0)).norm(dim=-1)
        assert torch.allclose(got[layer, group, first:last].double(), want, atol=1e-6)


def test_a_row_that_does_not_count_moves_no_other(device: torch.device) -> None:
    pools, slots, bounds, counts = _inputs([40], 16, torch.float32, device)
    counts[:, 7] = False
    before = op.group_distances(pools, slots, bounds, counts, max_rows=40)
    for pool in pools:
        pool[slots[7].long()] = 1e6
    after = op.group_distances(pools, slots, bounds, counts, max_rows=40)
    others = torch.arange(40, device=device) != 7
    assert torch.equal(before[..., others], after[..., others])
    assert bool((after[..., 7] > 1e5).all())


def test_no_frames_is_no_launch(device: torch.device, count_launches: Count) -> None:
    launches = count_launches(op)
    pools, slots, _, counts = _inputs([3], 8, torch.float32, device)
    nothing = op.group_distances(pools, slots[:0], indptr([], device), counts[:, :0].contiguous(), max_rows=0)
    assert nothing.shape == (LAYERS, GROUPS, 0)
    assert launches == {"block_sums_kernel": 0, "group_distances_kernel": 0}


def test_what_does_not_fit_is_refused(device: torch.device) -> None:
    pools, slots, bounds, counts = _inputs([3], 8, torch.float32, device)
    with pytest.raises(ValueError, match="there is no pool"):
        op.group_distances([], slots, bounds, counts, max_rows=3)
    with pytest.raises(ValueError, match="counts has shape"):
        op.group_distances(pools, slots, bounds, counts[:, :2], max_rows=3)
    with pytest.raises(TypeError, match="counts is float32"):
        op.group_distances(pools, slots, bounds, counts.float(), max_rows=3)
    with pytest.raises(ValueError, match=r"pools\[1\] must have the strides"):
        turned = pools[1].permute(1, 2, 0).contiguous().permute(2, 0, 1)
        op.group_distances([pools[0], turned, pools[2]], slots, bounds, counts, max_rows=3)
