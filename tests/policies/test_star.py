"""When `star` looks at the question, and what it remembers."""

from __future__ import annotations

import pytest
import torch

from star_kv_sglang.algorithm.layout import FrameSpan, PromptLayout
from star_kv_sglang.algorithm.state import TrajectoryState
from tests.policies.prefill import Prefill, make_policy, watched


def prompt(num_shown: int) -> PromptLayout:
    """A prompt that shows screenshots of six tokens each."""
    spans = tuple(FrameSpan(8 * i, 8 * i + 6, 2, 3) for i in range(num_shown))
    return PromptLayout(8 * num_shown + 8, 4, spans, num_shown)


@pytest.mark.parametrize(
    ("shown", "known", "share"),
    [
        pytest.param(1, 0, 0.0, id="first_turn"),
        pytest.param(4, 3, 0.0, id="next_turn"),
        pytest.param(4, 4, 0.0, id="another_question_about_the_same_screenshot"),
        pytest.param(2, 0, 0.5, id="sent_whole"),
        pytest.param(5, 3, 0.5, id="two_new_ones"),
        pytest.param(2, 4, 0.0, id="a_prompt_that_dropped_screenshots"),
    ],
)
def test_a_question_has_a_share_where_several_screenshots_are_new(shown: int, known: int, share: float) -> None:
    policy = make_policy("star")
    layout, state = prompt(shown), TrajectoryState(num_frames=known)
    assert policy.question_share(layout, state) == share
    assert policy.observes(layout, state) is (share > 0)


def test_a_share_that_is_set_holds_for_every_prompt() -> None:
    policy = make_policy("star", question_share=0.25)
    assert policy.question_share(prompt(1), TrajectoryState()) == 0.25
    assert policy.observes(prompt(1), TrajectoryState())


def test_no_attention_is_computed_where_no_question_has_a_share() -> None:
    policy = make_policy("star", question_share=0.0)
    _, seen = watched(policy, Prefill.random(1))
    assert seen.attention is None
    assert policy.score(seen).calibrated.isfinite().all()


def test_screenshots_that_were_scored_are_known_to_the_next_prompt() -> None:
    """The first request was sent whole and has a state of both saliencies; the second brought one screenshot."""
    policy = make_policy("star")
    _, seen = watched(policy, Prefill.random(1))
    whole, single = policy.score(seen).states
    assert (whole.num_frames, whole.step) == (3, 1) and whole.mi_ema is not None
    assert (single.num_frames, single.step, single.mi_ema) == (1, 0, None)
    for state, shown in ((whole, 3), (single, 1)):
        assert state.looks is not None and state.looks.mi_ema is not None
        assert (state.looks.num_frames, state.looks.step) == (shown, 1)


def test_what_a_request_keeps_does_not_depend_on_the_batch() -> None:
    """The second request's scores are the same whether or not the first one's question has a share."""
    run = Prefill.random(2)
    scores = []
    for share in (None, 0.0):
        policy = make_policy("star", question_share=share)
        plan, seen = watched(policy, run)
        first = plan.requests[0].layout.num_live
        scores.append(policy.score(seen).calibrated[:, first:])
    assert torch.equal(scores[0], scores[1])
