"""Recall of pruned history: the cases, their packing, and scores that are known by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tinygui.frame_scores import FrameView, beside_peaks, kept_before, once, peaks, rank
from tinygui.history_scores import PrunedHistory, interval
from tinygui.recall import RecallModel, recall_case, recall_cases

NUM_SCREENS, NUM_RECALLS = 3, 3


def test_recalls_ask_only_for_what_the_last_screen_does_not_show() -> None:
    case = recall_cases(100, 1)[0]
    assert len(case.recalls) == 10 and all(question.moved for question in case.recalls)
    assert {question.back for question in case.recalls} == {1, 2, 3, 4, 5}
    assert len(case.history) == len(case.screens) - 1


def test_a_seed_with_too_few_moved_widgets_is_refused() -> None:
    with pytest.raises(ValueError, match=r"seed 5: .* 99 questions were asked for"):
        recall_case(5, NUM_SCREENS, 99)


@pytest.mark.slow
def test_a_branch_is_answered_as_if_it_were_alone_and_dropping_everything_hurts() -> None:
    model = RecallModel()
    history = PrunedHistory(model)
    cases = recall_cases(200, 1, num_screens=NUM_SCREENS, num_recalls=NUM_RECALLS)
    packed = model.pack(cases)
    assert [end - start for start, end in packed.frames] == [126] * NUM_SCREENS
    assert len(packed.prompt_ends) == NUM_SCREENS - 1
    full = history.answers(packed, None, 0, 0)
    assert history.answers(packed, value_of_index, 126, 0) == full and sum(ok for _, ok in full) == NUM_RECALLS
    alone = [history.answers(model.pack(recall_cases(200, 1, num_screens=NUM_SCREENS, num_recalls=1)), None, 0, 0)[0]]
    assert alone[0] in full
    assert sum(ok for _, ok in history.answers(packed, value_of_index, 0, 0)) < NUM_RECALLS


def value_of_index(view: FrameView) -> torch.Tensor:
    return torch.arange(view.hidden.shape[1]).expand(len(view.hidden), -1).float()


def test_peaks_come_before_higher_tokens_beside_a_peak() -> None:
    score = torch.tensor([[9.0, 8.0, 1.0, 2.0]])
    assert rank(score)[0].tolist() == pytest.approx([1.0, 2 / 3, 0.0, 1 / 3])
    assert peaks(score, (1, 4)).argsort(descending=True).tolist() == [[0, 3, 1, 2]]


def test_tokens_beside_a_peak_keep_a_share_of_their_score() -> None:
    """The middle one is lower than a neighbour, but beside no peak."""
    score = torch.tensor([[9.0, 8.0, 2.0, 1.0, 3.0]])
    assert beside_peaks(score, (1, 5), 0.5).tolist() == [[9.0, 4.0, 2.0, 0.5, 3.0]]


def test_what_the_screen_before_has_kept_keeps_a_share_of_its_score() -> None:
    """Of the first and the last two, which were kept, the very last is further out than it was."""
    kept = torch.tensor([[True, False, True, True]])
    before = view_of([2.0, 1.0, -1.0, -2.0])
    now = replace(view_of([2.0, 1.5, -1.0, -2.5]), previous=before, previous_kept=kept)
    assert kept_before(before).tolist() == [[False] * 4]
    assert kept_before(now).tolist() == [[True, False, True, False]]
    scores = once(lambda view: torch.ones(view.hidden.shape[:2]), 0.5)(now)
    assert scores.tolist() == [[0.5, 1.0, 0.5, 1.0]]


def view_of(hidden: list[float]) -> FrameView:
    """A screen of two by two of which only the layer inputs matter."""
    nothing = torch.zeros(1, 1, 4, 1)
    sees = torch.ones(1, 4, 4, dtype=torch.bool)
    inputs = torch.tensor(hidden).view(1, 4, 1)
    return FrameView(inputs, nothing, nothing, nothing, nothing, sees, 0, (2, 2), None, None, torch.Generator())


def test_the_interval_of_no_failure_ends_at_one() -> None:
    low, high = interval(200, 200)
    assert low == pytest.approx(0.981, abs=1e-3) and high == pytest.approx(1.0)
