from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import pytest
import torch

from star_kv_sglang.algorithm.layout import FrameSpan, PromptLayout
from star_kv_sglang.algorithm.params import ScorerParams
from star_kv_sglang.algorithm.pipeline import ScoredBatch, score_batch
from star_kv_sglang.algorithm.state import TrajectoryState
from tests.assertions import assert_close

if TYPE_CHECKING:
    from collections.abc import Sequence

LAYERS, GROUPS = 3, 2
FAST_PRIOR = ScorerParams(prior_warmup_steps=0, prior_ramp_steps=1)


def _prompt(num_frames: int, *, total: int | None = None, window: int = 4, side: int = 6, gap: int = 3) -> PromptLayout:
    """Text, frames of side x side with text between them, and the window."""
    frames = tuple(
        FrameSpan(gap + i * (side * side + gap), gap + i * (side * side + gap) + side * side, side, side)
        for i in range(num_frames)
    )
    num_past = gap + num_frames * (side * side + gap)
    return PromptLayout(num_past + window, window, frames, num_frames if total is None else total)


def _inputs(
    layouts: Sequence[PromptLayout], seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    total = sum(layout.num_live for layout in layouts)
    scores = torch.rand(LAYERS, GROUPS, total, generator=generator)
    norms = torch.rand(LAYERS, total, generator=generator) + 0.5
    offsets = torch.zeros(LAYERS, total, dtype=torch.int16)
    indptr = [0]
    for layout in layouts:
        for frame in layout.frames:
            start = indptr[-1] + frame.start
            offsets[:, start : start + frame.num_live] = torch.arange(frame.num_live)
        indptr.append(indptr[-1] + layout.num_live)
        scores[:, :, indptr[-1] - layout.window : indptr[-1]] = 0.0
    return scores, torch.tensor(indptr, dtype=torch.int32), offsets, norms


def _score(
    layouts: Sequence[PromptLayout],
    states: Sequence[TrajectoryState] | None = None,
    params: ScorerParams = FAST_PRIOR,
    seed: int = 0,
) -> ScoredBatch:
    scores, indptr, offsets, norms = _inputs(layouts, seed)
    return score_batch(
        scores, layouts, indptr, offsets, norms, states or [TrajectoryState()] * len(layouts), params, keep_steps=True
    )


def test_a_batch_scores_each_request_as_if_alone() -> None:
    layouts = [_prompt(2), _prompt(0), _prompt(1, side=5), _prompt(3, window=1)]
    together_inputs = _inputs(layouts)
    states = [_score([layout]).states[0] for layout in layouts]
    grown = [dataclasses.replace(layout, num_frames_total=layout.num_frames_total + 1) for layout in layouts]
    scores, indptr, offsets, norms = together_inputs
    together = score_batch(scores.clone(), grown, indptr, offsets, norms, states, FAST_PRIOR, keep_steps=True)
    bounds = indptr.tolist()
    for r, layout in enumerate(grown):
        own = slice(bounds[r], bounds[r + 1])
        alone_indptr = torch.tensor([0, layout.num_live], dtype=torch.int32)
        alone = score_batch(
            scores[:, :, own].clone(), [layout], alone_indptr, offsets[:, own], norms[:, own], [states[r]], FAST_PRIOR
        )
        assert_close("calibrated", together.calibrated[:, own], alone.calibrated)
        assert together.states[r].step == alone.states[0].step
        for name in ("mi_ema", "pattern_ema", "stability", "temperature_ema"):
            ours, theirs = getattr(together.states[r], name), getattr(alone.states[0], name)
            assert (ours is None) == (theirs is None), name
            if ours is not None:
                assert_close(name, ours, theirs, ours.dtype)


def test_calibrated_scores_have_mean_one_and_the_window_has_none() -> None:
    layout = _prompt(2)
    scored = _score([layout])
    assert_close("mean", scored.calibrated[:, : layout.num_past].mean(dim=1), torch.ones(LAYERS), torch.float16)
    assert not scored.calibrated[:, layout.num_past :].any()
    assert_close("layer mean", scored.layer_mean, scored.calibrated.mean(dim=0))


def test_a_state_advances_only_with_a_new_screenshot() -> None:
    first = _score([_prompt(2)]).states[0]
    assert (first.step, first.num_frames) == (1, 2)
    again = _score([_prompt(2)], [first], seed=1).states[0]
    assert again is first
    grown = _score([_prompt(3)], [first], seed=2).states[0]
    assert (grown.step, grown.num_frames) == (2, 3)


def test_a_prompt_whose_oldest_screenshot_left_still_advances() -> None:
    state = _score([_prompt(3)]).states[0]
    assert _score([_prompt(3, total=4)], [state]).states[0].step == 2


def test_an_unobserved_request_has_no_scores_and_keeps_its_state() -> None:
    layout = PromptLayout(num_live=20, window=0, frames=(FrameSpan(0, 9, 3, 3),), num_frames_total=1)
    scores, indptr, offsets, norms = _inputs([layout])
    state = TrajectoryState()
    scored = score_batch(
        torch.zeros_like(scores),
        [layout],
        indptr,
        offsets,
        norms,
        [state],
        dataclasses.replace(FAST_PRIOR, boost=False),
    )
    assert scored.states[0] is state
    assert not scored.calibrated.any()


def test_a_fork_shares_the_state_and_nobody_writes_to_it() -> None:
    parent = _score([_prompt(2)]).states[0]
    tensors = {n: getattr(parent, n) for n in ("mi_ema", "pattern_ema", "stability", "temperature_ema")}
    copies = {n: t.clone() for n, t in tensors.items()}
    _score([_prompt(3), _prompt(3)], [parent, parent], seed=3)
    assert all(torch.equal(tensors[n], copies[n]) for n in tensors)


def test_the_pattern_restarts_when_the_screenshot_changes_size() -> None:
    state = _score([_prompt(2)]).states[0]
    resized = _score([_prompt(2, side=5, total=3)], [state]).states[0]
    assert resized.pattern_ema is not None
    assert resized.pattern_ema.shape == (LAYERS, GROUPS, 25)
    assert resized.stability is not None
    assert_close("stability", resized.stability, torch.ones(LAYERS, GROUPS), torch.float16)


def test_the_prior_needs_a_screenshot_and_the_discount_needs_two() -> None:
    none, one, two = (_score([_prompt(n)]).states[0] for n in range(3))
    assert (none.step, none.mi_ema, none.stability) == (0, None, None)
    assert one.mi_ema is not None
    assert one.stability is None
    assert two.stability is not None


def test_on_a_small_screenshot_no_head_is_preferred_for_a_rounding_error() -> None:
    """Every token has a position bin of its own, so that no head tells more about the position than another."""
    scored = _score([_prompt(1, side=6)])
    assert scored.states[0].mi_ema is not None
    assert scored.steps is not None
    assert scored.steps.prior_weights == (FAST_PRIOR.prior_lambda,)
    assert torch.equal(scored.steps.head_weights, torch.full((LAYERS, 1, GROUPS), 1 / GROUPS))


def test_heads_that_tell_more_about_the_position_weigh_more() -> None:
    scored = _score([_prompt(1, side=16)])
    mi, steps = scored.states[0].mi_ema, scored.steps
    assert mi is not None
    assert steps is not None
    assert torch.equal(steps.head_weights[:, 0].argsort(dim=-1), mi.argsort(dim=-1))
    assert bool((steps.head_weights.amax(dim=-1) > 1.5 * steps.head_weights.amin(dim=-1)).all())


def test_the_discount_lowers_earlier_screenshots_only() -> None:
    layout = _prompt(3)
    steps = _score([layout]).steps
    assert steps is not None
    ratio = steps.discounted / steps.fused
    ages = [1.0 - ratio[:, frame.start : frame.end].max() for frame in layout.frames]
    assert ages[0] > ages[1] > 0
    assert ages[2] == 0
    assert bool((ratio[:, : layout.frames[0].start] == 1).all())


def test_a_power_does_not_change_the_order_within_a_layer() -> None:
    layout = _prompt(2)
    steps = _score([layout]).steps
    assert steps is not None
    past = slice(0, layout.num_past)
    assert torch.equal(steps.discounted[:, past].argsort(dim=1), steps.final[:, past].argsort(dim=1))


def test_temperature_smoothing_mixes_with_the_branch_s_own_past() -> None:
    params = dataclasses.replace(FAST_PRIOR, temperature_smoothing=0.75)
    first = _score([_prompt(1)], params=params)
    second = _score([_prompt(2)], first.states, params, seed=5)
    fresh = _score([_prompt(2)], params=params, seed=5)
    assert_close("temperature", second.temperature, 0.75 * first.temperature + 0.25 * fresh.temperature)


@pytest.mark.parametrize("value", [0.0, 1.0], ids=["zero", "equal"])
@pytest.mark.parametrize(
    "layout",
    [
        pytest.param(_prompt(2), id="two-frames"),
        pytest.param(_prompt(2, side=1, gap=0), id="frames-of-one-token"),
        pytest.param(PromptLayout(3, 3, (), 0), id="window-only"),
        pytest.param(PromptLayout(4, 3, (), 0), id="one-past-token"),
        pytest.param(PromptLayout(9, 4, (FrameSpan(0, 0, 3, 3), FrameSpan(5, 5, 3, 3)), 2), id="empty-frames"),
        pytest.param(PromptLayout(9, 4, (FrameSpan(0, 4, 2, 2), FrameSpan(4, 5, 3, 3)), 2), id="pruned-to-one-token"),
    ],
)
def test_degenerate_prompts_give_numbers(layout: PromptLayout, value: float) -> None:
    scores, indptr, offsets, _ = _inputs([layout])
    scores[:, :, : layout.num_past] = value
    norms = torch.ones(LAYERS, layout.num_live)
    state = TrajectoryState()
    for turn in range(3):
        grown = dataclasses.replace(layout, num_frames_total=len(layout.frames) + turn)
        scored = score_batch(
            scores.clone(), [grown], indptr, offsets, norms, [state], dataclasses.replace(FAST_PRIOR, boost=turn > 0)
        )
        state = scored.states[0]
        tensors = [scored.calibrated, scored.layer_mean, scored.temperature]
        tensors += [t for t in (state.mi_ema, state.pattern_ema, state.stability) if t is not None]
        assert all(bool(t.isfinite().all()) for t in tensors)


def test_a_pruned_current_frame_bins_by_its_tokens_own_offsets() -> None:
    layout = PromptLayout(40, 4, (FrameSpan(2, 20, 6, 6),), 1)
    scores, indptr, offsets, norms = _inputs([layout])
    offsets[:, 2:20] = torch.arange(0, 36, 2)
    pruned = score_batch(scores.clone(), [layout], indptr, offsets, norms, [TrajectoryState()], FAST_PRIOR)
    offsets[:, 2:20] = 7
    stacked = score_batch(scores.clone(), [layout], indptr, offsets, norms, [TrajectoryState()], FAST_PRIOR)
    assert pruned.states[0].mi_ema is not None
    assert stacked.states[0].mi_ema is not None
    assert bool((pruned.states[0].mi_ema > 1.0).all())
    assert bool((stacked.states[0].mi_ema.abs() < 1e-6).all()), "all tokens in one place say nothing about the place"


def test_the_state_of_a_branch_is_small() -> None:
    scores, indptr, offsets, norms = _inputs([_prompt(2)])
    state = score_batch(scores, [_prompt(2)], indptr, offsets, norms, [TrajectoryState()], ScorerParams()).states[0]
    frame_tokens, head_dim = 36, 128
    screenshot_bytes = LAYERS * GROUPS * frame_tokens * head_dim * 2 * 2
    pattern_bytes = LAYERS * GROUPS * frame_tokens * 2
    assert pattern_bytes <= 0.005 * screenshot_bytes
    assert state.num_bytes <= pattern_bytes + LAYERS * (2 * GROUPS + 1) * 4


@pytest.mark.parametrize("what", ["states", "tokens", "kv_indptr", "frame_norms", "empty"])
def test_inputs_that_do_not_belong_together_are_refused(what: str) -> None:
    layouts = [_prompt(1)]
    scores, indptr, offsets, norms = _inputs(layouts)
    states = [TrajectoryState()]
    if what == "states":
        states = []
    elif what == "tokens":
        layouts = [_prompt(2)]
    elif what == "kv_indptr":
        indptr = indptr[:1]
    elif what == "frame_norms":
        norms = norms[:1]
    else:
        layouts, states = [], []
    with pytest.raises(ValueError, match="cannot score this batch"):
        score_batch(scores, layouts, indptr, offsets, norms, states, FAST_PRIOR)
