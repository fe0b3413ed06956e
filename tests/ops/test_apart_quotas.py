from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from star_kv_sglang.triton_ops.apart_quotas import op, reference
from tests.ops.batches import generator, int_tensor

if TYPE_CHECKING:
    from tests.ops.conftest import Count


@pytest.mark.parametrize(
    ("page_size", "told", "added"), [(1, [2, 4, 3, 0], [2, 4, 0, 0]), (4, [4, 4, 3, 0], [4, 4, 0, 0])]
)
def test_a_quota_grows_by_what_nobody_has_counted_yet_in_whole_pages(
    page_size: int, told: list[int], added: list[int], device: torch.device, count_launches: Count
) -> None:
    """Two of ten; six of ten, of which four count; some that are known; some before the window, where none stay."""
    launches = count_launches(op)
    apart = torch.zeros(40, dtype=torch.bool)
    apart[[3, 7, 10, 11, 13, 15, 16, 18, 21, 22, 31]] = True
    segments = int_tensor([[0, 10], [10, 20], [20, 30], [30, 40]], device)
    quotas, known = int_tensor([1, 2, 3, 0], device), int_tensor([-1, -1, 3, 0], device)
    for ops in (op, reference):
        got = ops.apart_quotas(quotas, apart.to(device), segments, known, most=4, page_size=page_size, max_segment=10)
        assert [one.tolist() for one in got] == [[q + a for q, a in zip([1, 2, 3, 0], added, strict=True)], told]
    assert launches == {"apart_quotas_kernel": 1}


def test_no_quota_exceeds_its_segment(device: torch.device) -> None:
    apart = torch.ones(5, dtype=torch.bool, device=device)
    for ops in (op, reference):
        grown, told = ops.apart_quotas(
            int_tensor([3], device),
            apart,
            int_tensor([[0, 5]], device),
            int_tensor([-1], device),
            most=4,
            page_size=1,
            max_segment=5,
        )
        assert (grown.tolist(), told.tolist()) == ([5], [4])


def test_long_segments_are_counted_whole(device: torch.device) -> None:
    apart = (torch.rand(5000, generator=generator(0)) < 0.01).to(device)
    segments = int_tensor([[0, 2600], [2600, 2600], [2700, 5000]], device)
    given = (int_tensor([5, 0, 7], device), apart, segments, int_tensor([-1, -1, -1], device))
    got, want = (
        [one.tolist() for one in ops.apart_quotas(*given, most=100, page_size=1, max_segment=2600)]
        for ops in (op, reference)
    )
    assert got == want
    assert want[1][0] > 10


def test_wrong_arguments_are_refused(device: torch.device) -> None:
    quotas, segments = int_tensor([1], device), int_tensor([[0, 2]], device)
    with pytest.raises(TypeError, match="apart is float32, expected bool"):
        op.apart_quotas(quotas, torch.ones(2, device=device), segments, quotas, most=4, page_size=1, max_segment=2)
