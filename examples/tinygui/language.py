"""The question language of the small world.

==========================  ==========================================================================
``click red K here``        ``x12 y20``: the widget's centre in cells of 8 px, on the screen in view
``recall red K step2``      the same for the screen shown at step 2, up to five screens back
``read x12 y20 here``       ``red K``: what stands at that point
==========================  ==========================================================================

Replies are scored by `star_kv_sglang.tools.rollout.scoring.is_correct`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from star_kv_sglang.tools.rollout.scoring import CELL
from star_kv_sglang.tools.rollout.trajectory import Box, Question
from tinygui.world import Labelled, Shown

LAST_STEP = 12
"""The vocabulary ends at ``step12``."""
LONGEST_RECALL = 5
"""Screens back that the shipped model was trained for."""

KINDS = ("click", "recall", "read")


@dataclass(frozen=True, slots=True)
class QuestionMix:
    """What is asked.

    Attributes:
        click, recall, read: weights of the three kinds; recall needs an earlier screen and is left out without one.
        moved: probability that a recall asks for a widget that has moved or gone, where there is one.
    """

    click: float = 0.35
    recall: float = 0.45
    read: float = 0.2
    moved: float = 0.75


DEFAULT_MIX = QuestionMix()


def step_name(first_step: int, index: int) -> str:
    """Tag of the ``index``-th screen (from 0) of a trajectory that starts at ``first_step``."""
    return f"step{first_step + index}"


def centre_words(box: Box) -> str:
    """The centre of a box as the model says it: ``x12 y20``, in cells of 8 px."""
    x, y, width, height = box
    return f"x{(x + width // 2) // CELL} y{(y + height // 2) // CELL}"


def click(widget: Labelled) -> Question:
    """Where is this widget of the screen in view?"""
    return Question(f"click {widget.colour} {widget.letter} here", centre_words(widget.box), widget.box, 0, False)


def read(widget: Labelled) -> Question:
    """What stands at this point of the screen in view?"""
    return Question(f"read {centre_words(widget.box)} here", f"{widget.colour} {widget.letter}", widget.box, 0, False)


def recall(widget: Labelled, back: int, step: str, now: Shown) -> Question:
    """Where was this widget of the screen shown ``back`` turns ago, at ``step``?"""
    moved = not any(other.label == widget.label and other.box == widget.box for other in now.widgets)
    text = f"recall {widget.colour} {widget.letter} {step}"
    return Question(text, centre_words(widget.box), widget.box, back, moved)


def possible_questions(screens: Sequence[Shown], index: int, first_step: int, kind: str) -> list[Question]:
    """Every question of one kind that can be asked while ``screens[index]`` is in view."""
    now = screens[index]
    if kind == "click":
        return [click(widget) for widget in now.widgets]
    if kind == "read":
        return [read(widget) for widget in now.widgets]
    return [
        recall(widget, back, step_name(first_step, index - back), now)
        for back in range(1, min(index, LONGEST_RECALL) + 1)
        for widget in screens[index - back].widgets
    ]


def ask(
    rng: Random, screens: Sequence[Shown], index: int, first_step: int, count: int, mix: QuestionMix = DEFAULT_MIX
) -> tuple[Question, ...]:
    """Draws ``count`` different questions; recalls are drawn evenly over how far back they reach."""
    questions: list[Question] = []
    while len(questions) < count:
        question = _draw(rng, screens, index, first_step, mix)
        if question not in questions:
            questions.append(question)
    return tuple(questions)


def _draw(rng: Random, screens: Sequence[Shown], index: int, first_step: int, mix: QuestionMix) -> Question:
    kind = _draw_kind(rng, mix, recall_possible=index > 0)
    candidates = possible_questions(screens, index, first_step, kind)
    if kind == "recall":
        back = rng.randint(1, min(index, LONGEST_RECALL))
        candidates = [question for question in candidates if question.back == back]
        moved = rng.random() < mix.moved
        candidates = [question for question in candidates if question.moved is moved] or candidates
    return rng.choice(candidates)


def _draw_kind(rng: Random, mix: QuestionMix, *, recall_possible: bool) -> str:
    weights = (mix.click, mix.recall if recall_possible else 0.0, mix.read)
    mark = rng.random() * sum(weights)
    for kind, weight in zip(KINDS, weights, strict=True):
        if weight and mark < weight:
            return kind
        mark -= weight
    return "click"
