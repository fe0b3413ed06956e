"""Ratios to stock and the targets."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from star_kv_sglang.tools.bench.serve.results import Figure
from star_kv_sglang.tools.bench.serve.summary import Verdict, by_key, comparison_table, judge, ratio_to_stock

LONG, MIDDLE = 27_013, 13_508


def _steps(policy: str, history: int, ms: float | None) -> Figure:
    return Figure(policy, "decode", "ms_per_step", ms, history=history, batch=32)


def _verdict(figures: list[Figure], word: str) -> Verdict:
    (found,) = [verdict for verdict in judge(figures) if word in verdict.target]
    return found


def test_ratio_needs_both_figures() -> None:
    row = {"stock": _steps("stock", LONG, 20.0), "star 0.2": _steps("star 0.2", LONG, 10.0)}
    assert ratio_to_stock(row, "star 0.2") == 0.5
    assert ratio_to_stock(row, "full") is None
    assert ratio_to_stock({**row, "stock": _steps("stock", LONG, None)}, "star 0.2") is None


def test_histories_are_compared_with_themselves() -> None:
    figures = [_steps("stock", LONG, 20.0), _steps("stock", MIDDLE, 12.0), _steps("star 0.2", LONG, 10.0)]
    rows = by_key(figures)
    assert [sorted(row) for row in rows.values()] == [["star 0.2", "stock"], ["stock"]]


@pytest.mark.parametrize(
    ("history", "word", "star_ms", "met", "distance"),
    [
        pytest.param(LONG, "20k-35k", 10.0, True, "", id="long: 2.27x"),
        pytest.param(LONG, "20k-35k", 11.35, False, "0.10x", id="long: 2.00x"),
        pytest.param(MIDDLE, "10k-18k", 13.0, True, "", id="middle: 1.75x"),
        pytest.param(MIDDLE, "10k-18k", 22.7, False, "0.65x", id="middle: 1.00x"),
    ],
)
def test_decode_target(history: int, word: str, star_ms: float, met: bool, distance: str) -> None:
    verdict = _verdict([_steps("stock", history, 22.7), _steps("star 0.2", history, star_ms)], word)
    assert (verdict.met, verdict.distance) == (met, distance)


def test_what_was_not_measured_is_neither_met_nor_missed() -> None:
    assert {verdict.met for verdict in judge([_steps("stock", LONG, 22.7)])} == {None}


@pytest.mark.parametrize(("alive", "met"), [(20, True), (19, False)])
def test_branches_target(alive: int, met: bool) -> None:
    figures = [
        Figure("stock", "branches", "branches_alive", 5.0, history=LONG),
        Figure("star 0.2", "branches", "branches_alive", float(alive), history=LONG),
    ]
    assert _verdict(figures, "fixed pool").met is met


def test_first_token_target_takes_the_worst_turn() -> None:
    figures = [
        Figure(policy, "ttft", "ttft_ms_p50", value, history=2700 * turn, batch=turn)
        for policy, values in {"stock": (300.0, 500.0), "star 0.2": (290.0, 520.0)}.items()
        for turn, value in enumerate(values, start=1)
    ]
    verdict = _verdict(figures, "first token")
    assert (verdict.met, verdict.measured) == (False, "1.040x at worst")


def test_a_plugin_that_does_nothing_must_cost_nothing() -> None:
    figures = [_steps("stock", LONG, 20.0), _steps("full", LONG, 20.1), _steps("full", MIDDLE, 13.0)]
    assert _verdict(figures, "full with").met is True
    assert _verdict([*figures, _steps("stock", MIDDLE, 12.0)], "full with").met is False


def test_second_server_of_stock_says_what_two_equal_ones_differ_by() -> None:
    figures = [_steps("stock", LONG, 20.0), _steps("full", LONG, 21.0), _steps("stock again", LONG, 19.2)]
    verdict = _verdict(figures, "full with")
    assert verdict.measured == "1.050 at worst (decode ms_per_step, batch or turn 32); stock again: 0.960"
    assert (verdict.met, verdict.distance) == (False, "0.040")


def test_ratios_of_the_same_conversations_count_instead_of_two_medians() -> None:
    figures = [
        *(Figure(policy, "ttft", "ttft_ms_p50", ms, batch=1) for policy, ms in {"stock": 300.0, "full": 330.0}.items()),
        Figure("full", "ttft", "ttft_ratio", 1.004, batch=1),
        Figure("star 0.2", "ttft", "ttft_ms_p50", 330.0, batch=1),
        Figure("star 0.2", "ttft", "ttft_ratio", 1.012, batch=1),
    ]
    assert _verdict(figures, "full with").measured == "1.004 at worst (ttft ttft_ratio, batch or turn 1)"
    assert _verdict(figures, "first token").measured == "1.012x at worst"


def test_the_table_shows_ratios_reasons_and_what_is_partial() -> None:
    figures = [
        _steps("stock", LONG, 20.0),
        Figure("star 0.2", "decode", "ms_per_step", 10.0, history=LONG, batch=32, partial=True),
        Figure("full", "decode", "ms_per_step", None, history=LONG, batch=32, note="needs 9 slots of 8"),
    ]
    console = Console(file=io.StringIO(), width=160)
    console.print(comparison_table(figures))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "10* (0.500)" in text
    assert "needs 9 slots of 8" in text
