from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from star_kv_sglang.triton_ops.keep_scores import op, reference
from tests.ops.batches import generator, scattered_slots

if TYPE_CHECKING:
    from tests.ops.conftest import Count


@pytest.mark.parametrize("with_ids", [True, False], ids=["once", "always"])
@pytest.mark.parametrize("with_again", [True, False], ids=["again", "as_now"])
@pytest.mark.parametrize("tokens", [1, 700])
def test_kernel_equals_reference(
    tokens: int, with_again: bool, with_ids: bool, device: torch.device, count_launches: Count
) -> None:
    launches = count_launches(op)
    source = generator(tokens)
    scores = (torch.rand(3, tokens, generator=source) * 1e5).to(device)
    again = torch.rand(3, tokens, generator=source)
    again = torch.where(again < 0.3, torch.nan, again).to(device) if with_again else None
    slots, num_slots = scattered_slots(tokens, 1, device)
    ids = (torch.rand(num_slots, generator=source) < 0.5).int().to(device) if with_ids else None
    got, want = (
        ops.keep_scores(scores, again, slots, ids, torch.full((3, num_slots), -1.0, device=device).half())
        for ops in (op, reference)
    )
    assert launches == {"keep_scores_kernel": 1}
    assert torch.equal(got, want)
    assert float(want.max()) <= 65504


def test_what_is_no_number_stays_so(device: torch.device) -> None:
    scores = torch.tensor([[float("nan"), float("inf")]], device=device)
    for ops in (op, reference):
        kept = ops.keep_scores(
            scores, None, torch.tensor([2, 1], device=device), None, torch.zeros(1, 3, device=device).half()
        )
        assert kept[0, :2].tolist() == [0.0, 65504.0]
        assert bool(kept[0, 2].isnan())


def test_wrong_arguments_are_refused(device: torch.device) -> None:
    scores, slots = torch.ones(2, 3, device=device), torch.arange(3, device=device)
    with pytest.raises(TypeError, match="kept is float32"):
        op.keep_scores(scores, None, slots, None, torch.zeros(2, 9, device=device))
    with pytest.raises(ValueError, match=r"again has shape \[2, 2\]"):
        op.keep_scores(scores, scores[:, :2], slots, None, torch.zeros(2, 9, device=device).half())
