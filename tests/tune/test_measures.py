"""Distances of two passes over an answer, and how a pass over the full cache's answer is put together."""

from __future__ import annotations

import math
from random import Random

import pytest

from star_kv_sglang.tools.actions import Action, ActionKind
from star_kv_sglang.tools.eval.samples import TaskKind
from star_kv_sglang.tools.tune.actions import answer_reader, is_same, read
from star_kv_sglang.tools.tune.asking import Token
from star_kv_sglang.tools.tune.errors import TuneError
from star_kv_sglang.tools.tune.measures import distance, divergence, teacher_forced


def shares(rng: Random, size: int) -> list[float]:
    weights = [rng.expovariate(1) ** 3 + 1e-4 for _ in range(size)]
    return [weight / sum(weights) for weight in weights]


def token(of: list[float], answer: int, most: int) -> Token:
    """A place of an answer in a small vocabulary; the likeliest tokens are told."""
    best = sorted(range(len(of)), key=lambda one: -of[one])[:most]
    return Token(answer, math.log(of[answer]), {one: math.log(of[one]) for one in best})


@pytest.mark.parametrize("seed", range(20))
def test_the_divergence_is_exact_with_all_tokens_and_no_more_than_that_with_some(seed: int) -> None:
    rng = Random(seed)
    p, q = shares(rng, 30), shares(rng, 30)
    answer = rng.randrange(30)
    exact = sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    assert divergence(token(p, answer, 30), token(q, answer, 30)) == pytest.approx(exact, rel=1e-9)
    some = divergence(token(p, answer, 10), token(q, answer, 10))
    assert 0 <= some <= exact + 1e-12
    assert divergence(token(p, answer, 5), token(p, answer, 5)) == pytest.approx(0, abs=1e-12)


def test_a_distance_is_the_mean_over_the_answers_tokens() -> None:
    one, other = Token(1, math.log(0.5), {}), Token(1, math.log(0.25), {})
    two = Token(2, math.log(0.9), {})
    apart = distance([one, two], [other, two])
    assert apart.logprob == pytest.approx(-math.log(2) / 2)
    assert apart.kl == pytest.approx((0.5 * math.log(2) + 0.5 * math.log(0.5 / 0.75)) / 2)
    with pytest.raises(ValueError, match="same answer"):
        distance([one], [two])


def test_an_answer_that_stays_the_same_needs_no_second_pass() -> None:
    free = [Token(5, -0.1, {}), Token(6, -0.2, {})]
    assert teacher_forced((5, 6), free, -0.1, None) == tuple(free)


def test_from_where_the_policy_goes_its_own_way_the_answer_was_put_behind_the_prompt() -> None:
    free = [Token(5, -0.1, {}), Token(9, -0.2, {}), Token(9, -0.2, {})]
    said = [Token(6, -3.0, {}), Token(7, -0.5, {})]
    assert teacher_forced((5, 6, 7), free, -0.1, None) is None
    assert teacher_forced((5, 6, 7), free, -0.1, said) == (free[0], *said)


def test_the_first_token_is_that_of_the_prompts_own_pass() -> None:
    free = [Token(9, -0.1, {9: -0.1, 5: -2.5})]
    assert teacher_forced((5,), free, -2.5, None) == (Token(5, -2.5, {9: -0.1, 5: -2.5}),)
    assert teacher_forced((5,), free, None, None) is None
    assert teacher_forced((5, 6), free, -2.5, [Token(6, -1.0, {})])[1:] == (Token(6, -1.0, {}),)  # type: ignore[index]


def test_clicks_are_the_same_within_the_tolerance_and_words_are_the_same_words() -> None:
    small, size = answer_reader("small", TaskKind.COMPUTER), (448, 288)
    click = read(small, "x12 y20", size)
    assert click == (Action(ActionKind.CLICK, point=(100 / 448, 164 / 288)),)
    assert is_same(click, read(small, "x13 y20", size), 0.04)
    assert not is_same(click, read(small, "x15 y20", size), 0.04)
    assert is_same(read(small, "red K", size), read(small, "red  K", size), 0.04)
    assert not is_same(click, read(small, "red K", size), 0.04)


def test_a_familys_actions_are_read_and_what_cannot_be_read_is_another_action() -> None:
    tars = answer_reader("ui-tars-1.5", TaskKind.COMPUTER)
    one = read(tars, "Thought: here\nAction: click(point='<point>100 100</point>')", (1932, 1092))
    two = read(tars, "Thought: there\nAction: click(point='<point>110 100</point>')", (1932, 1092))
    assert is_same(one, two, 0.04)
    nothing = read(tars, "I do not know", (1932, 1092))
    assert nothing is None
    assert not is_same(one, nothing, 0.04)
    typed = read(tars, "Action: type(content='hello')", (1932, 1092))
    assert not is_same(typed, read(tars, "Action: type(content='hallo')", (1932, 1092)), 0.04)
    with pytest.raises(TuneError, match=r"--agent 'nobody' is not known: choose words, small,"):
        answer_reader("nobody", TaskKind.COMPUTER)
