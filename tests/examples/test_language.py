"""Questions and reference answers, by hand-computed cases."""

from __future__ import annotations

from random import Random

import pytest

from star_kv_sglang.tools.rollout.scoring import is_correct
from tinygui.language import QuestionMix, ask, centre_words, click, possible_questions, read, recall
from tinygui.world import Background, Screen, Widget
from tinygui.worlds import PANELS

PAGE = Background((250, 250, 250), ())
ORANGE_Y = Widget((59, 219, 49, 31), "orange", "Y", "filled", 22)
GREEN_W = Widget((18, 141, 32, 40), "green", "W", "pale", 30)
ORANGE_Y_ELSEWHERE = Widget((200, 40, 49, 31), "orange", "Y", "filled", 22)


def screen(*widgets: Widget) -> Screen:
    return Screen(448, 288, PAGE, widgets)


@pytest.mark.parametrize(
    ("box", "words"),
    [
        ((59, 219, 49, 31), "x10 y29"),
        ((2, 2, 32, 28), "x2 y2"),
        ((374, 242, 72, 44), "x51 y33"),
        ((16, 16, 32, 32), "x4 y4"),
    ],
    ids=["odd-size", "top-left-corner", "bottom-right-corner", "centre-on-a-cell-edge"],
)
def test_centre_in_cells_of_8_pixels(box: tuple[int, int, int, int], words: str) -> None:
    assert centre_words(box) == words


def test_the_three_kinds() -> None:
    assert (click(ORANGE_Y).text, click(ORANGE_Y).answer) == ("click orange Y here", "x10 y29")
    assert (read(GREEN_W).text, read(GREEN_W).answer) == ("read x4 y20 here", "green W")
    asked = recall(ORANGE_Y, 2, "step3", screen(GREEN_W))
    assert (asked.text, asked.answer, asked.back) == ("recall orange Y step3", "x10 y29", 2)


@pytest.mark.parametrize(
    ("now", "moved"),
    [(screen(GREEN_W), True), (screen(GREEN_W, ORANGE_Y_ELSEWHERE), True), (screen(ORANGE_Y, GREEN_W), False)],
    ids=["gone", "elsewhere", "still-there"],
)
def test_recall_knows_whether_the_screen_in_view_answers_it(now: Screen, moved: bool) -> None:
    assert recall(ORANGE_Y, 1, "step1", now).moved is moved


def test_recalls_name_the_step_that_showed_the_widget() -> None:
    screens = [screen(ORANGE_Y), screen(GREEN_W), screen(ORANGE_Y_ELSEWHERE)]
    asked = possible_questions(screens, 2, first_step=5, kind="recall")
    assert [(q.text, q.back) for q in asked] == [("recall green W step6", 1), ("recall orange Y step5", 2)]
    assert possible_questions(screens, 0, first_step=5, kind="recall") == []


def test_recalls_reach_five_screens_back_at_most() -> None:
    screens = PANELS.screens(Random("far"), 9)
    assert max(q.back for q in possible_questions(screens, 8, first_step=1, kind="recall")) == 5


@pytest.mark.parametrize("seed", range(20))
def test_every_reference_answer_is_right_and_no_question_is_asked_twice(seed: int) -> None:
    screens = PANELS.screens(Random(f"ask {seed}"), 4)
    for index in range(4):
        questions = ask(Random(f"ask {seed} {index}"), screens, index, 1, 6)
        assert len({question.text for question in questions}) == 6
        assert all(is_correct(question, question.answer) for question in questions)
        assert index > 0 or all(question.kind != "recall" for question in questions)


@pytest.mark.parametrize("kind", ["click", "recall", "read"])
def test_a_mix_of_one_kind_asks_nothing_else(kind: str) -> None:
    weights = {"click": 0.0, "recall": 0.0, "read": 0.0, kind: 1.0}
    screens = PANELS.screens(Random("mix"), 3)
    questions = ask(Random("mix"), screens, 2, 1, 5, QuestionMix(**weights))
    assert {question.kind for question in questions} == {kind}
