"""What a run says: each figure beside stock SGLang's, and the targets."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from rich.table import Table

from star_kv_sglang.tools.bench.serve.results import Figure
from star_kv_sglang.tools.bench.serve.server import CONTROL, FULL, STOCK, Policy

REFERENCE_BUDGET: Final = Policy("star", 0.2).label
_NEUTRAL: Final = ("ms_per_step", "tokens_per_s", "branches_alive", "ttft_ms_p50", "turns_per_s", "hit_rate")
_PAIRED: Final = ("ttft_ratio", "step_ratio")
"""Ratios to stock of the same conversations, where servers ran side by side; better than those of two medians."""
_LONG: Final = (20_000, 35_000)
_MIDDLE: Final = (10_000, 18_000)

Key = tuple[str, str, int, int]
"""Phase, metric, batch or turn, and tokens of history, which no policy changes."""


def by_key(figures: Sequence[Figure]) -> dict[Key, dict[str, Figure]]:
    """Figures of all policies that belong together, in the order of the run. A later one replaces an earlier one."""
    table: dict[Key, dict[str, Figure]] = {}
    for figure in figures:
        key = (figure.phase, figure.metric, figure.batch, figure.history)
        table.setdefault(key, {})[figure.policy] = figure
    return table


def newest(runs: Iterable[Sequence[Figure]]) -> list[Figure]:
    """What each figure was in the last run that has it for several policies, so that their ratios are of one run.

    What was never measured for several comes from the last run that has it at all.
    """
    chosen: dict[Key, dict[str, Figure]] = {}
    for run in runs:
        for key, row in by_key(run).items():
            if len(row) > 1 or len(chosen.get(key, ())) <= 1:
                chosen[key] = row
    return [figure for row in chosen.values() for figure in row.values()]


def ratio_to_stock(row: dict[str, Figure], policy: str) -> float | None:
    """A policy's figure divided by stock's; None when one of them is missing or stock's is 0."""
    mine, stock = row.get(policy), row.get(STOCK)
    if mine is None or stock is None or mine.value is None or not stock.value:
        return None
    return mine.value / stock.value


def comparison_table(figures: Sequence[Figure]) -> Table:
    """One row for each figure, one column for each policy, with the ratio to stock."""
    policies = list(dict.fromkeys(figure.policy for figure in figures))
    table = Table("phase", "metric", "history", "batch or turn", *policies, title="Ratio to stock in brackets")
    for column in table.columns[2:]:
        column.justify = "right"
    for (phase, metric, batch, history), row in by_key(figures).items():
        table.add_row(phase, metric, str(history or ""), str(batch or ""), *(_cell(row, policy) for policy in policies))
    return table


def _cell(row: dict[str, Figure], policy: str) -> str:
    figure = row.get(policy)
    if figure is None:
        return ""
    if figure.value is None:
        return figure.note[:60]
    ratio = None if policy == STOCK else ratio_to_stock(row, policy)
    partial = "*" if figure.partial else ""
    return f"{figure.value:,.4g}{partial}" + ("" if ratio is None else f" ({ratio:.3f})")


@dataclass(frozen=True)
class Verdict:
    """A target and what was measured.

    Attributes:
        met: None when it was not measured.
        distance: how far off, in words; empty when met.
    """

    target: str
    measured: str
    met: bool | None
    distance: str = ""


def judge(figures: Sequence[Figure]) -> list[Verdict]:
    """The targets, each met or with its distance."""
    table = by_key(figures)
    return [
        _neutral(table),
        _decode(table, _LONG, 2.1),
        _decode(table, _MIDDLE, 1.65),
        _branches(table, 4.0),
        _ttft(table, 1.015),
    ]


def _neutral(table: dict[Key, dict[str, Figure]]) -> Verdict:
    target = "full with the plugin: 1.00 +- 0.01 of stock in every figure"
    ratios, equal = _neutral_ratios(table, FULL), _neutral_ratios(table, CONTROL)
    if not ratios:
        return Verdict(target, "", None)
    key = _worst(ratios)
    off = abs(ratios[key] - 1)
    text = f"{ratios[key]:.3f} at worst ({key[0]} {key[1]}, batch or turn {key[2]})"
    text += f"; {CONTROL}: {equal[_worst(equal)]:.3f}" if equal else ""
    return _verdict(target, text, off <= 0.01, f"{off - 0.01:.3f}")


def _neutral_ratios(table: dict[Key, dict[str, Figure]], policy: str) -> dict[Key, float]:
    """A policy's ratios to stock in everything that no policy should change."""
    paired = {key: row[policy].value for key, row in table.items() if key[1] in _PAIRED and policy in row}
    ratios = {key: ratio for key, ratio in paired.items() if ratio is not None}
    for key, row in table.items():
        ratio = ratio_to_stock(row, policy) if key[1] in _NEUTRAL else None
        if ratio is not None and not (paired and key[1] == "ttft_ms_p50"):
            ratios[key] = ratio
    return ratios


def _worst(ratios: dict[Key, float]) -> Key:
    return max(ratios, key=lambda key: abs(ratios[key] - 1))


def _decode(table: dict[Key, dict[str, Figure]], lengths: tuple[int, int], least: float) -> Verdict:
    target = f"decode, batch 32, history {lengths[0] // 1000}k-{lengths[1] // 1000}k, {REFERENCE_BUDGET}: {least}x"
    for (phase, metric, batch, history), row in table.items():
        if (phase, metric, batch) == ("decode", "ms_per_step", 32) and lengths[0] <= history <= lengths[1]:
            ratio = ratio_to_stock(row, REFERENCE_BUDGET)
            if ratio is not None:
                return _verdict(target, f"{1 / ratio:.2f}x", 1 / ratio >= least, f"{least - 1 / ratio:.2f}x")
    return Verdict(target, "", None)


def _branches(table: dict[Key, dict[str, Figure]], least: float) -> Verdict:
    target = f"branches in a fixed pool, {REFERENCE_BUDGET}: {least:g}x"
    for (_, metric, _, _), row in table.items():
        if metric == "branches_alive":
            ratio = ratio_to_stock(row, REFERENCE_BUDGET)
            if ratio is not None:
                return _verdict(target, f"{ratio:.2f}x", ratio >= least, f"{least - ratio:.2f}x")
    return Verdict(target, "", None)


def _ttft(table: dict[Key, dict[str, Figure]], most: float) -> Verdict:
    target = f"time to first token of each turn, {REFERENCE_BUDGET}: at most {most}x"
    paired, medians = [], []
    for (phase, metric, _, _), row in table.items():
        mine = row.get(REFERENCE_BUDGET)
        if phase != "ttft" or mine is None or mine.value is None:
            continue
        if metric == "ttft_ratio":
            paired.append(mine.value)
        elif metric == "ttft_ms_p50" and (ratio := ratio_to_stock(row, REFERENCE_BUDGET)) is not None:
            medians.append(ratio)
    ratios = paired or medians
    if not ratios:
        return Verdict(target, "", None)
    return _verdict(target, f"{max(ratios):.3f}x at worst", max(ratios) <= most, f"{max(ratios) - most:.3f}x")


def _verdict(target: str, measured: str, met: bool, distance: str) -> Verdict:
    return Verdict(target, measured, met, "" if met else distance)


def targets_table(figures: Sequence[Figure]) -> Table:
    """The targets for the terminal."""
    table = Table("target", "measured", "", title="Targets")
    for verdict in judge(figures):
        state = {True: "[green]met[/]", False: f"[red]missed by {verdict.distance}[/]", None: "not measured"}
        table.add_row(verdict.target, verdict.measured, state[verdict.met])
    return table
