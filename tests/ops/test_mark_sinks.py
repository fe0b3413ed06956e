from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from star_kv_sglang.triton_ops.mark_sinks import op, reference
from tests.ops.batches import generator, indptr, scattered_slots

if TYPE_CHECKING:
    from tests.ops.conftest import Count


@pytest.mark.parametrize("tile", [16, 4096])
@pytest.mark.parametrize("sizes", [[1], [3], [40, 0, 200]], ids=lambda sizes: f"frames{sizes}")
def test_kernel_equals_reference(
    sizes: list[int], tile: int, device: torch.device, count_launches: Count, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(op, "MAX_TILE", tile)
    launches = count_launches(op)
    excess = (torch.rand(sum(sizes), generator=generator(2)) * 30).round().to(device)
    slots, num_slots = scattered_slots(sum(sizes), 3, device)
    bounds = indptr(sizes, device)
    got, want = (
        ops.mark_sinks(
            excess,
            bounds,
            slots,
            torch.ones(3, num_slots, device=device).bfloat16(),
            ratio=20.0,
            most=4,
            max_rows=max(sizes),
        )
        for ops in (op, reference)
    )
    assert launches == {"mark_sinks_kernel": 1}
    assert torch.equal(got, want)
    if sizes == [40, 0, 200]:
        assert int(want[0].isinf().sum()) == 8


def test_nothing_above_the_ratio_is_marked_and_of_equal_ones_the_first(device: torch.device) -> None:
    excess = torch.tensor([20.0, 21.0, 21.0, 21.0], device=device)
    for ops in (op, reference):
        norms = ops.mark_sinks(
            excess,
            indptr([4], device),
            torch.tensor([5, 2, 3, 1], device=device),
            torch.zeros(2, 6, device=device),
            ratio=20.0,
            most=2,
            max_rows=4,
        )
        assert norms.isinf().nonzero().tolist() == [[0, 2], [0, 3], [1, 2], [1, 3]]


def test_no_frames_is_no_launch(device: torch.device, count_launches: Count) -> None:
    launches = count_launches(op)
    nothing = torch.zeros(0, device=device)
    op.mark_sinks(
        nothing, indptr([], device), nothing.long(), torch.zeros(2, 3, device=device), ratio=2, most=4, max_rows=0
    )
    assert launches == {"mark_sinks_kernel": 0}


def test_wrong_arguments_are_refused(device: torch.device) -> None:
    excess, bounds = torch.ones(3, device=device), indptr([3], device)
    with pytest.raises(TypeError, match="slots is float32"):
        op.mark_sinks(excess, bounds, excess, torch.zeros(2, 3, device=device), ratio=2, most=4, max_rows=3)
