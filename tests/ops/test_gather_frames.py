from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from star_kv_sglang.triton_ops.gather_frames import op, reference
from tests.ops.batches import generator, scattered_slots

if TYPE_CHECKING:
    from tests.ops.conftest import Count


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("tokens", "units"), [(1, 3), (700, 3), (20, 6)])
def test_kernel_equals_reference(
    tokens: int, units: int, dtype: torch.dtype, device: torch.device, count_launches: Count
) -> None:
    launches = count_launches(op)
    slots, num_slots = scattered_slots(tokens, 1, device)
    source = generator(tokens)
    norms = torch.rand(3, num_slots, generator=source)
    norms = torch.where(norms < 0.2, torch.inf, norms).to(device=device, dtype=dtype)
    offsets = torch.randint(-1, 900, (units, num_slots), generator=source).to(device=device, dtype=torch.int16)
    got, want = (ops.gather_frames(norms, offsets, slots) for ops in (op, reference))
    assert launches == {"gather_frames_kernel": 1}
    for mine, other in zip(got, want, strict=True):
        assert mine.dtype == other.dtype
        assert torch.equal(mine, other)


def test_no_tokens_is_no_launch(device: torch.device, count_launches: Count) -> None:
    launches = count_launches(op)
    pool = torch.zeros(2, 4, device=device)
    nothing = op.gather_frames(pool, pool.short(), torch.zeros(0, dtype=torch.int64, device=device))
    assert [tuple(one.shape) for one in nothing] == [(2, 0)] * 3
    assert launches == {"gather_frames_kernel": 0}


def test_wrong_arguments_are_refused(device: torch.device) -> None:
    pool, slots = torch.zeros(2, 4, device=device), torch.arange(3, device=device)
    with pytest.raises(ValueError, match="offsets has 3 rows, expected a multiple of the 2 layers"):
        op.gather_frames(pool, torch.zeros(3, 4, device=device).short(), slots)
    with pytest.raises(TypeError, match="offsets is float32"):
        op.gather_frames(pool, pool, slots)
