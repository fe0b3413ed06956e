from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from star_kv_sglang.triton_ops.kept_copies import op, reference
from tests.assertions import assert_close
from tests.ops.batches import generator

if TYPE_CHECKING:
    from tests.ops.conftest import Count

Screens = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def _screens(num_places: int, live: int, earlier: int, device: torch.device) -> Screens:
    """A screenshot and the one before, some tokens of about the same distance; other ones live in every layer."""
    source = generator(num_places)

    def held(count: int) -> torch.Tensor:
        return torch.stack([torch.randperm(num_places, generator=source)[:count].sort().values for _ in range(3)])

    shown = torch.rand(3, num_places, generator=source) + 0.5
    before = shown * (0.8 + 0.4 * torch.rand(3, num_places, generator=source))
    places, earlier_places = held(live), held(earlier)
    tensors = (shown.gather(1, places), places, before.gather(1, earlier_places), earlier_places.short())
    return tuple(tensor.to(device) for tensor in tensors)  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("num_places", "live", "earlier"), [(1, 1, 1), (20, 20, 9), (99, 50, 98), (1200, 1200, 300), (30, 0, 5), (30, 9, 0)]
)
def test_kernel_equals_reference(
    num_places: int, live: int, earlier: int, device: torch.device, count_launches: Count
) -> None:
    launches = count_launches(op)
    screens = _screens(num_places, live, earlier, device)
    got = op.kept_copies(*screens, num_places=num_places, tolerance=0.1)
    want = reference.kept_copies(*screens, num_places=num_places, tolerance=0.1)
    assert launches == {"kept_copies_kernel": 1 if live else 0}
    assert_close("copies", got, want)
    if (live, earlier) == (1200, 300):
        assert 0 < float(got.mean()) < 1


def test_a_place_where_nobody_lives_has_no_copy(device: torch.device) -> None:
    distances = torch.tensor([[1.0, 0.0, 5.0]], device=device)
    places = torch.tensor([[0, 1, 2]], device=device)
    for ops in (op, reference):
        got = ops.kept_copies(distances, places, distances[:, :1], places[:, :1], num_places=3, tolerance=0.1)
        assert got.tolist() == [[1.0, 0.0, 0.0]]


def test_wrong_arguments_are_refused(device: torch.device) -> None:
    distances, places, earlier, earlier_places = _screens(20, 20, 9, device)
    with pytest.raises(TypeError, match="earlier_distances is float16"):
        op.kept_copies(distances, places, earlier.half(), earlier_places, num_places=20, tolerance=0.1)
    with pytest.raises(ValueError, match=r"earlier_offsets has shape \[3, 8\]"):
        op.kept_copies(distances, places, earlier, earlier_places[:, :8], num_places=20, tolerance=0.1)
    with pytest.raises(ValueError, match="offsets must be contiguous along its tokens"):
        op.kept_copies(distances, places.T.contiguous().T, earlier, earlier_places, num_places=20, tolerance=0.1)
