"""What the screenshot before has kept already, and when that counts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from star_kv_sglang.algorithm.layout import FrameSpan, PromptLayout
from star_kv_sglang.algorithm.state import TrajectoryState
from star_kv_sglang.policies.base.axes import group_saliency
from star_kv_sglang.policies.base.distinctness import is_kept_before
from star_kv_sglang.policies.base.interface import Observation
from star_kv_sglang.triton_ops.dispatch import get_ops
from tests.policies.by_hand import standing_out
from tests.policies.prefill import make_policy

NUM_LAYERS, NUM_GROUPS, WINDOW = 3, 2, 4
GRID = (4, 5)
NUM_PLACES = GRID[0] * GRID[1]
NUM_LEFT = 9
TEXT = torch.full((NUM_LAYERS, WINDOW), -1)


def two_screenshots(seed: int, *, before: tuple[int, int] = GRID, num_left: int = NUM_LEFT) -> Observation:
    """A prompt with a screenshot that was pruned to ``num_left`` tokens, other ones in every layer, and a new one of
    about the same distances: within a fifth of those before.
    """
    generator = torch.Generator().manual_seed(seed)
    now = torch.rand(NUM_LAYERS, NUM_PLACES, generator=generator) + 0.5
    num_before = before[0] * before[1]
    held = torch.rand(NUM_LAYERS, num_before, generator=generator).argsort(dim=1)[:, :num_left].sort(dim=1).values
    earlier = now.gather(1, held) * (0.8 + 0.4 * torch.rand(NUM_LAYERS, num_left, generator=generator))
    start, end = WINDOW + num_left, WINDOW + num_left + NUM_PLACES
    layout = PromptLayout(
        num_live=end + WINDOW,
        window=WINDOW,
        frames=(FrameSpan(WINDOW, start, *before), FrameSpan(start, end, *GRID)),
        num_frames_total=2,
    )
    places = torch.arange(NUM_PLACES).expand(NUM_LAYERS, -1)
    return Observation(
        layouts=[layout],
        states=[TrajectoryState(num_frames=1)],
        budgets=[0.3],
        kv_indptr=torch.tensor([0, layout.num_live], dtype=torch.int32),
        slots=torch.arange(layout.num_live) + 1,
        keys=[],
        values=[torch.randn(layout.num_live + 1, NUM_GROUPS, 4, generator=generator) for _ in range(NUM_LAYERS)],
        frame_offsets=torch.cat([TEXT, held, places, TEXT], dim=1).to(torch.int16),
        frame_norms=torch.cat([0.0 * TEXT, earlier, now, 0.0 * TEXT], dim=1),
        attention=None,
        ops=get_ops("reference"),
    )


def best_first(name: str, seen: Observation, **settings: Any) -> list[list[int]]:
    """Places of the new screenshot in the order of a policy's scores, [layer]."""
    scores = make_policy(name, **settings).score(seen).calibrated
    return scores[:, seen.frame(0, 1)].argsort(dim=1, descending=True, stable=True).tolist()


def best_first_by_hand(seen: Observation, **settings: Any) -> list[list[int]]:
    orders = []
    for layer in range(NUM_LAYERS):
        held = seen.frame_offsets[layer, seen.frame(0, 0)].tolist()
        before = dict(zip(held, seen.frame_norms[layer, seen.frame(0, 0)].tolist(), strict=True))
        scores = standing_out(seen.frame_norms[layer, seen.frame(0, 1)].tolist(), *GRID, before=before, **settings)
        orders.append(sorted(range(NUM_PLACES), key=lambda place: (-scores[place], place)))
    return orders


@pytest.mark.parametrize("name", ["distinct", "star"])
@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({}, id="default"),
        pytest.param({"kept_before": 0.4}, id="copies_count_little"),
        pytest.param({"kept_before": 0.4, "beside_peak": 0.0}, id="peaks_before_all_others"),
        pytest.param({"kept_before": 0.4, "peaks": False}, id="no_peaks"),
        pytest.param({"kept_before": 1.0}, id="copies_count_in_full"),
    ],
)
@pytest.mark.parametrize("seed", [1, 2])
def test_copies_of_what_the_screenshot_before_has_kept_count_as_set(
    name: str, settings: dict[str, Any], seed: int
) -> None:
    seen = two_screenshots(seed)
    assert best_first(name, seen, **settings) == best_first_by_hand(seen, **settings)


@pytest.mark.parametrize("seed", [1, 2])
def test_a_copy_counts_as_much_as_its_group_s_pattern_is_stable(seed: int) -> None:
    """The first two prompts of a branch have no pattern but their own, which is stable; this is a later one."""
    generator = torch.Generator().manual_seed(seed + 40)
    running = torch.rand(NUM_LAYERS, NUM_GROUPS, NUM_PLACES, generator=generator) ** 3
    running /= running.mean(dim=2, keepdim=True)
    looks = TrajectoryState(step=1, num_frames=1, pattern_ema=running.half())
    seen = replace(two_screenshots(seed), states=[TrajectoryState(num_frames=1, looks=looks)])
    copies, saliency = is_kept_before(seen, 0, 1), group_saliency(seen, subspaces=True)[..., seen.frame(0, 1)]
    assert copies is not None
    orders, stable = [], []
    for layer in range(NUM_LAYERS):
        factors = []
        for place in range(NUM_PLACES):
            group = max(range(NUM_GROUPS), key=lambda g: float(saliency[layer, g, place]))
            now = saliency[layer, group].double() / saliency[layer, group].double().mean()
            mixed = 0.9 * running[layer, group].half().double() + 0.1 * now
            stable.append(float((now @ mixed) / (now.norm() * mixed.norm())))
            factors.append(1 - 0.6 * float(copies[layer, place]) * stable[-1])
        distances = seen.frame_norms[layer, seen.frame(0, 1)].tolist()
        scores = standing_out(distances, *GRID, factors=factors)
        orders.append(sorted(range(NUM_PLACES), key=lambda place: (-scores[place], place)))
    assert max(stable) < 0.9
    assert best_first("star", seen, kept_before=0.4) == orders
    assert best_first("star", seen, kept_before=0.4) != best_first("distinct", seen, kept_before=0.4)
    assert best_first("star", seen, kept_before=0.4, temporal=False) == best_first("distinct", seen, kept_before=1.0)


def test_copies_make_a_difference_in_every_layer() -> None:
    seen = two_screenshots(3)
    copies = is_kept_before(seen, 0, 1)
    assert copies is not None
    assert all(0 < count < NUM_LEFT for count in copies.sum(dim=1).tolist())
    pairs = zip(best_first("distinct", seen), best_first("distinct", seen, kept_before=1.0), strict=True)
    assert all(with_copies != without for with_copies, without in pairs)


def test_what_is_not_there_any_more_or_looks_different_is_no_copy() -> None:
    seen = two_screenshots(4)
    earlier, span = seen.frame(0, 0), seen.frame(0, 1)
    seen.frame_norms[:, earlier] = 1.0
    seen.frame_norms[:, span] = torch.tensor([0.85, 0.95, 1.05, 1.15]).repeat(NUM_PLACES // 4)
    copies = is_kept_before(seen, 0, 1)
    assert copies is not None
    for layer in range(NUM_LAYERS):
        held = seen.frame_offsets[layer, earlier].tolist()
        assert copies[layer].nonzero()[:, 0].tolist() == [place for place in held if place % 4 in (1, 2)]


@pytest.mark.parametrize(
    "before",
    [
        pytest.param({"num_left": NUM_PLACES}, id="whole"),
        pytest.param({"num_left": 0}, id="empty"),
        pytest.param({"before": (GRID[1], GRID[0])}, id="another_grid"),
    ],
)
def test_a_screenshot_before_that_says_nothing_changes_nothing(before: dict[str, Any]) -> None:
    seen = two_screenshots(5, **before)
    assert is_kept_before(seen, 0, 1) is None
    assert best_first("distinct", seen, kept_before=0.4) == best_first("distinct", seen, kept_before=1.0)


def test_the_first_screenshot_has_none_before_it() -> None:
    assert is_kept_before(two_screenshots(6), 0, 0) is None
