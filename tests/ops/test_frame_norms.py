from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from star_kv_sglang.triton_ops.frame_norms import op, reference
from tests.assertions import assert_close
from tests.ops.batches import generator, scattered_slots

if TYPE_CHECKING:
    from tests.ops.conftest import Count


@pytest.mark.parametrize("pool_dtype", [torch.float32, torch.float16], ids=["pool32", "pool16"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize(
    ("rows", "channels"), [(1, 1), (3, 100), (17, 128), (2, 3584), (5, 2049)], ids=lambda value: str(value)
)
def test_kernel_equals_reference(
    rows: int, channels: int, dtype: torch.dtype, pool_dtype: torch.dtype, device: torch.device, count_launches: Count
) -> None:
    launches = count_launches(op)
    hidden = torch.randn(rows, channels + 3, generator=generator(0)).to(device, dtype)[:, :channels]
    slots, num_slots = scattered_slots(rows, 1, device)
    pools = [torch.full((num_slots,), -1.0, dtype=pool_dtype, device=device) for _ in range(2)]
    got = op.frame_norms(hidden, slots, pools[0])
    want = reference.frame_norms(hidden, slots.long(), pools[1])
    assert launches == {"frame_norms_kernel": 1}
    assert_close("norms", got, want, pool_dtype)
    assert int((got == -1).sum()) == num_slots - rows, "other slots are left alone"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("channels", [1, 100, 2049])
def test_distance_to_the_centre_of_a_screenshot(channels: int, dtype: torch.dtype, device: torch.device) -> None:
    sizes = [4, 1, 6]
    hidden = (5 + torch.randn(sum(sizes), channels, generator=generator(3))).to(device, dtype)
    centres = torch.stack([part.mean(dim=0, dtype=torch.float32) for part in hidden.split(sizes)])
    ids = torch.arange(3, dtype=torch.int32).repeat_interleave(torch.tensor(sizes)).to(device)
    slots, num_slots = scattered_slots(sum(sizes), 1, device)
    pools = [torch.full((num_slots,), -1.0, device=device) for _ in range(2)]
    got = op.frame_norms(hidden, slots, pools[0], centres, ids)
    want = reference.frame_norms(hidden, slots.long(), pools[1], centres, ids)
    assert_close("norms", got, want, torch.float32)
    by_hand = (hidden.double() - centres.double()[ids.long()]).square().sum(dim=1).sqrt()
    assert_close("norms", want[slots.long()].double(), by_hand)


def test_centres_and_their_rows_belong_together(device: torch.device) -> None:
    with pytest.raises(ValueError, match="belong together"):
        op.frame_norms(torch.zeros(3, 8), torch.zeros(3, dtype=torch.int32), torch.zeros(4), torch.zeros(1, 8))


def test_reference_equals_float64(device: torch.device) -> None:
    hidden = torch.randn(9, 77, generator=generator(2))
    pool = reference.frame_norms(hidden, torch.arange(9), torch.zeros(9))
    assert_close("norms", pool, hidden.double().square().sum(dim=1).sqrt())


def test_no_rows_is_no_launch(device: torch.device, count_launches: Count) -> None:
    launches = count_launches(op)
    pool = torch.ones(4, device=device)
    op.frame_norms(torch.zeros(0, 8, device=device), torch.zeros(0, dtype=torch.int32, device=device), pool)
    assert launches == {"frame_norms_kernel": 0}
    assert bool((pool == 1).all())


def test_rows_and_slots_must_match(device: torch.device) -> None:
    with pytest.raises(ValueError, match=r"slot_ids has shape \[2\], expected \[3\]"):
        op.frame_norms(torch.zeros(3, 8), torch.zeros(2, dtype=torch.int32), torch.zeros(4))
