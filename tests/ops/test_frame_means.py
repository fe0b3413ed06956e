from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from star_kv_sglang.triton_ops.frame_means import op, reference
from tests.assertions import assert_close
from tests.ops.batches import generator

if TYPE_CHECKING:
    from tests.ops.conftest import Count


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("channels", [1, 100, 513], ids=lambda c: f"c{c}")
@pytest.mark.parametrize(
    "sizes", [[1], [33], [31, 0, 70], [2, 65, 32]], ids=["one_row", "two_blocks", "empty_frame", "three_frames"]
)
def test_kernel_equals_reference(
    sizes: list[int], channels: int, dtype: torch.dtype, device: torch.device, count_launches: Count
) -> None:
    launches = count_launches(op)
    hidden = (3 + torch.randn(sum(sizes), channels + 5, generator=generator(0))).to(device, dtype)[:, :channels]
    indptr = torch.tensor([0, *torch.tensor(sizes).cumsum(0).tolist()], dtype=torch.int32, device=device)
    got = op.frame_means(hidden, indptr, max_rows=max(sizes))
    want = reference.frame_means(hidden, indptr, max_rows=max(sizes))
    assert launches == {"partial_sums_kernel": 1, "combine_sums_kernel": 1}
    assert_close("norms", got, want, torch.float32)


def test_reference_equals_float64(device: torch.device) -> None:
    hidden = torch.randn(9, 77, generator=generator(2))
    got = reference.frame_means(hidden, torch.tensor([0, 4, 9], dtype=torch.int32), max_rows=5)
    want = torch.stack([hidden[:4].double().mean(dim=0), hidden[4:].double().mean(dim=0)])
    assert torch.allclose(got.double(), want, atol=1e-6)


def test_no_frames_is_no_launch(device: torch.device, count_launches: Count) -> None:
    launches = count_launches(op)
    empty = torch.zeros(1, dtype=torch.int32, device=device)
    assert op.frame_means(torch.zeros(0, 8, device=device), empty, max_rows=0).shape == (0, 8)
    assert launches == {"partial_sums_kernel": 0, "combine_sums_kernel": 0}


def test_bounds_must_be_int32(device: torch.device) -> None:
    with pytest.raises(TypeError, match="indptr"):
        op.frame_means(torch.zeros(3, 8, device=device), torch.tensor([0, 3], device=device), max_rows=3)
