"""The suite's plots."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from star_kv_sglang.tools.eval.errors import EvalError
from star_kv_sglang.tools.eval.runner import Protocol
from star_kv_sglang.tools.eval.suite.questions import SuiteTask
from star_kv_sglang.tools.eval.suite.tables import SuiteResults
from star_kv_sglang.tools.eval.suite.variants import FULL, POLICIES, PROTOCOLS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLOURS: Final = {
    "star": "#d62728",
    "star-paper": "#ff7f0e",
    "distinct": "#e377c2",
    "snapkv": "#1f77b4",
    "guikv": "#17becf",
    "stlite": "#bcbd22",
    "fastgen": "#8c6d31",
    "lookm": "#393b79",
    "vlcache": "#9467bd",
    "h2o": "#8c564b",
    "streaming": "#7f7f7f",
    "random": "#2ca02c",
    FULL: "#000000",
}
_AGES_AT: Final = 0.1


def draw_all(results: SuiteResults, folder: Path) -> list[Path]:
    """Writes the plots that the results have figures for.

    Raises:
        EvalError: matplotlib is not installed.
    """
    try:
        import matplotlib as mpl

        mpl.use("Agg")
        import matplotlib.pyplot as plt
    except ImportError:
        raise EvalError("the plots need matplotlib: pip install matplotlib") from None
    folder.mkdir(parents=True, exist_ok=True)
    drawn = []
    for name, draw in (
        ("suite-budgets.svg", _draw_budgets),
        ("suite-recall-by-age.svg", _draw_recall_by_age),
        ("suite-kept-by-age.svg", _draw_kept_by_age),
    ):
        figure, axes = plt.subplots(1, len(PROTOCOLS), figsize=(10.5, 4.2), sharey=True, layout="constrained")
        if draw(results, list(axes)):
            handles, labels = axes[0].get_legend_handles_labels()
            figure.legend(handles, labels, loc="outside right center", frameon=False)
            # The same results give the same file.
            figure.savefig(folder / name, metadata={"Date": None})
            drawn.append(folder / name)
        plt.close(figure)
    return drawn


def _draw_budgets(results: SuiteResults, axes: list[Axes]) -> bool:
    """Recall of what has moved or gone, over the budget."""
    for axis, protocol in zip(axes, PROTOCOLS, strict=True):
        budgets = results.budgets(protocol)
        for name in POLICIES:
            cells = [(budget, results.get(name, budget, protocol)) for budget in budgets]
            points = [(b, cell.share(SuiteTask.MOVED)) for b, cell in cells if cell is not None]
            if points:
                xs, ys = [b for b, _ in points], [share.value for _, share in points]
                lows = [max(0.0, share.value - share.interval[0]) for _, share in points]
                highs = [max(0.0, share.interval[1] - share.value) for _, share in points]
                axis.errorbar(xs, ys, yerr=[lows, highs], label=name, **_style(name))
        axis.set_xscale("log")
        axis.set_xticks(budgets, [f"{100 * budget:g} %" for budget in budgets])
        axis.minorticks_off()
        _finish(axis, protocol, "share of a screenshot's tokens that stays")
    axes[0].set_ylabel("right: recall of what has moved or gone")
    return any(results.budgets(protocol) for protocol in PROTOCOLS)


def _draw_recall_by_age(results: SuiteResults, axes: list[Axes]) -> bool:
    drawn = False
    for axis, protocol in zip(axes, PROTOCOLS, strict=True):
        for cell in results.row(_AGES_AT, protocol):
            ages = sorted({answer.back for answer in cell.outcome.values() if answer.task is SuiteTask.MOVED})
            ys = [cell.share(SuiteTask.MOVED, age).value for age in ages]
            axis.plot(ages, ys, label=cell.variant.name, **_style(cell.variant.name))
            axis.set_xticks(ages)
            drawn = True
        _finish(axis, protocol, f"screens back, at {100 * _AGES_AT:g} %")
    axes[0].set_ylabel("right: recall of what has moved or gone")
    return drawn


def _draw_kept_by_age(results: SuiteResults, axes: list[Axes]) -> bool:
    drawn = False
    for axis, protocol in zip(axes, PROTOCOLS, strict=True):
        for cell in results.row(_AGES_AT, protocol):
            if cell.kept:
                ys = [kept / total for kept, total in cell.kept.values()]
                axis.plot([*cell.kept], ys, label=cell.variant.name, **_style(cell.variant.name))
                axis.set_xticks([*cell.kept])
                drawn = True
        _finish(axis, protocol, f"screens ago, at {100 * _AGES_AT:g} %")
    axes[0].set_ylabel("share of the screenshot's tokens left")
    return drawn


def _style(name: str) -> dict[str, Any]:
    width = 2.2 if name == "star" else 1.2
    return {"color": _COLOURS[name], "marker": "o", "markersize": 3, "linewidth": width}


def _finish(axis: Axes, protocol: Protocol, label: str) -> None:
    axis.set_title(protocol.value)
    axis.set_xlabel(label)
    axis.set_ylim(-0.02, 1.02)
    axis.grid(alpha=0.3)
