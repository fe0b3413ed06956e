from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from star_kv_sglang.triton_ops.count_above import op, reference
from tests.ops.batches import generator

if TYPE_CHECKING:
    from tests.ops.conftest import Count

LOWEST, HIGHEST = -(2**15), 2**15 - 1


def bounds(sizes: list[int], device: torch.device) -> torch.Tensor:
    return torch.tensor([0, *torch.tensor(sizes).cumsum(0).tolist()], dtype=torch.int32, device=device)


@pytest.mark.parametrize("thresholds", [[0], [-5, 0, 7], list(range(-800, 800, 100))], ids=["one", "three", "sixteen"])
@pytest.mark.parametrize("units", [1, 3, 28], ids=lambda units: f"u{units}")
@pytest.mark.parametrize(
    "sizes",
    [[1], [300], [31, 0, 70], [2, 256, 108]],
    ids=["one_token", "two_blocks", "empty_segment", "three_segments"],
)
def test_kernel_equals_reference(
    sizes: list[int], units: int, thresholds: list[int], device: torch.device, count_launches: Count
) -> None:
    launches = count_launches(op)
    keys = torch.randint(-1000, 1000, (units, sum(sizes) + 3), generator=generator(0), dtype=torch.int16)
    keys = keys.to(device)[:, : sum(sizes)]
    limits = torch.tensor(thresholds, dtype=torch.int32, device=device)
    got = op.count_above(keys, bounds(sizes, device), limits)
    assert launches == {"count_above_kernel": 1}
    assert torch.equal(got, reference.count_above(keys, bounds(sizes, device), limits))


def test_reference_equals_a_loop() -> None:
    device = torch.device("cpu")
    keys = torch.randint(-4, 4, (2, 9), generator=generator(1), dtype=torch.int16)
    got = reference.count_above(keys, bounds([4, 0, 5], device), torch.tensor([-2, 1], dtype=torch.int32))
    parts = (keys[:, :4], keys[:, :0], keys[:, 4:])
    assert got.tolist() == [[int((part > limit).sum()) for part in parts] for limit in (-2, 1)]


def test_the_ends_of_the_range(device: torch.device) -> None:
    keys = torch.tensor([[LOWEST, -1, 0, HIGHEST]], dtype=torch.int16, device=device)
    limits = torch.tensor([LOWEST - 1, LOWEST, HIGHEST - 1, HIGHEST, HIGHEST + 1], dtype=torch.int32, device=device)
    for ops in (op, reference):
        assert ops.count_above(keys, bounds([4], device), limits)[:, 0].tolist() == [4, 3, 1, 0, 0]


def test_no_segments_is_no_launch(device: torch.device, count_launches: Count) -> None:
    launches = count_launches(op)
    limits = torch.tensor([0], dtype=torch.int32, device=device)
    keys = torch.zeros(2, 0, dtype=torch.int16, device=device)
    assert op.count_above(keys, bounds([], device), limits).shape == (1, 0)
    assert launches == {"count_above_kernel": 0}


def test_more_than_sixteen_thresholds_are_refused(device: torch.device) -> None:
    keys = torch.zeros(2, 4, dtype=torch.int16, device=device)
    with pytest.raises(ValueError, match="17 thresholds at once"):
        op.count_above(keys, bounds([4], device), torch.arange(17, dtype=torch.int32, device=device))
