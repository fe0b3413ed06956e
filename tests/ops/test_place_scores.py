from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from star_kv_sglang.triton_ops.place_scores import op, reference
from tests.assertions import assert_close
from tests.ops.batches import generator

if TYPE_CHECKING:
    from tests.ops.conftest import Count

SETTINGS: dict[str, Any] = {"prominent": 2.0, "temperature_range": (0.75, 1.25), "temperature_smoothing": 0.3}


def _screen(layers: int, live: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Places, distances of which a third stands out and some are 0, and who is beside a peak."""
    source = generator(live)
    order = torch.stack([torch.randperm(live, generator=source) for _ in range(layers)]).float()
    distances = torch.rand(layers, live, generator=source) + 0.5
    kind = torch.rand(layers, live, generator=source)
    distances = torch.where(kind < 0.1, 0.0, torch.where(kind > 0.7, 4 * distances, distances))
    beside = (torch.rand(layers, live, generator=source) > 0.6).float()
    return order.to(device), distances.to(device), beside.to(device)


@pytest.mark.parametrize("with_fading", [True, False], ids=["fading", "all_left"])
@pytest.mark.parametrize("with_previous", [True, False], ids=["previous", "first"])
@pytest.mark.parametrize("with_temperature", [True, False], ids=["temperature", "none"])
@pytest.mark.parametrize("live", [1, 2, 33, 1000])
def test_kernel_equals_reference(
    live: int,
    with_temperature: bool,
    with_previous: bool,
    with_fading: bool,
    device: torch.device,
    count_launches: Count,
) -> None:
    launches = count_launches(op)
    source = generator(7)
    fading = (torch.rand(3, live, generator=source) + 0.1).to(device) if with_fading else None
    previous = (torch.rand(3, generator=source) + 0.7).to(device) if with_previous else None
    settings = SETTINGS if with_temperature else {**SETTINGS, "temperature_range": None}
    screen = _screen(3, live, device)
    got, want = (ops.place_scores(*screen, fading, previous, **settings) for ops in (op, reference))
    assert launches == {"place_scores_kernel": 1}
    assert_close("scores", got, want)


def test_a_screenshot_of_more_tokens_than_a_tile_is_counted_whole(
    device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(op, "MAX_TILE", 64)
    screen = _screen(2, 300, device)
    got, want = (ops.place_scores(*screen, None, None, **SETTINGS) for ops in (op, reference))
    assert_close("scores", got, want)


def test_what_shows_twice_as_much_gets_the_same_score_at_twice_the_place(device: torch.device) -> None:
    distances = torch.tensor([[9.0, 1, 1, 1, 1, 1], [9.0, 9, 1, 1, 1, 1], [9.0, 9, 1, 1, 1, 1]], device=device)
    places = torch.tensor([[1.0] * 6, [2.0] * 6, [2.0] * 6], device=device)
    beside = torch.zeros_like(distances)
    beside[2, 1] = 1
    for ops in (op, reference):
        scores = ops.place_scores(places, distances, beside, None, None, **{**SETTINGS, "temperature_range": None})
        assert scores[:, 0].tolist() == pytest.approx([1 / 2, 1 / 2, 1 / 3])


def test_a_blank_screenshot_counts_as_flat(device: torch.device) -> None:
    blank = torch.zeros(1, 4, device=device)
    for ops in (op, reference):
        scores = ops.place_scores(torch.ones_like(blank), blank, blank, None, None, **SETTINGS)
        assert scores[0].tolist() == pytest.approx([0.5 ** (1 / 1.25)] * 4)


def test_no_tokens_is_no_launch(device: torch.device, count_launches: Count) -> None:
    launches = count_launches(op)
    nothing = torch.zeros(2, 0, device=device)
    for ops in (op, reference):
        assert ops.place_scores(nothing, nothing, nothing, None, None, **SETTINGS).shape == (2, 0)
    assert launches == {"place_scores_kernel": 0}


def test_wrong_arguments_are_refused(device: torch.device) -> None:
    places, distances, beside = _screen(2, 6, device)
    with pytest.raises(ValueError, match=r"beside has shape \[2, 5\]"):
        op.place_scores(places, distances, beside[:, :5], None, None, **SETTINGS)
    with pytest.raises(TypeError, match="places is float16"):
        op.place_scores(places.half(), distances, beside, None, None, **SETTINGS)
    with pytest.raises(ValueError, match=r"previous_temperature has shape \[3\]"):
        op.place_scores(places, distances, beside, None, torch.ones(3, device=device), **SETTINGS)
    with pytest.raises(ValueError, match="fading must be contiguous"):
        op.place_scores(places, distances, beside, torch.ones(2, 12, device=device)[:, ::2], None, **SETTINGS)
