"""The run as a picture: decode time against batch, and branches in the fixed pool."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from star_kv_sglang.tools.bench.serve.results import Figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_STYLES = ("-", "--", ":", "-.")


def draw(figures: Sequence[Figure], path: Path, *, title: str) -> None:
    """Write a PNG.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Canvas

    canvas = Canvas(figsize=(11, 4.5), layout="constrained")
    FigureCanvasAgg(canvas)
    left, right = canvas.subplots(1, 2, width_ratios=(2, 1))
    shown = [figure for figure in figures if figure.value is not None]
    decode = [figure for figure in shown if figure.phase == "decode" and figure.metric == "ms_per_step"]
    branches = [figure for figure in shown if figure.metric == "branches_alive"]
    policies = dict.fromkeys(figure.policy for figure in (*decode, *branches))
    colors = {policy: f"C{number}" for number, policy in enumerate(policies)}
    _draw_decode(left, decode, colors)
    _draw_branches(right, branches, colors)
    canvas.suptitle(title)
    canvas.savefig(path, dpi=130)


def _draw_decode(axes: Axes, figures: Sequence[Figure], colors: Mapping[str, str]) -> None:
    histories = sorted({figure.history for figure in figures})
    batches = sorted({figure.batch for figure in figures})
    for policy, color in colors.items():
        for style, history in enumerate(histories):
            mine = [figure for figure in figures if (figure.policy, figure.history) == (policy, history)]
            steps = dict.fromkeys(batches, math.nan)  # no line over what was not measured
            steps |= {figure.batch: figure.value for figure in mine if figure.value is not None}
            if mine:
                axes.plot(
                    batches,
                    [steps[batch] for batch in batches],
                    marker="o",
                    color=color,
                    linestyle=_STYLES[style % len(_STYLES)],
                    label=f"{policy}, {history / 1000:.1f}k tokens",
                )
    axes.set_xscale("log", base=2)
    axes.set_xticks(batches)
    axes.xaxis.set_major_formatter("{x:.0f}")
    axes.set(xlabel="branches that decode", ylabel="ms a step", title="Decode")
    axes.set_ylim(bottom=0)
    if axes.lines:
        axes.legend(fontsize=8)
    axes.grid(alpha=0.3)


def _draw_branches(axes: Axes, figures: Sequence[Figure], colors: Mapping[str, str]) -> None:
    names = [figure.policy for figure in figures]
    bars = axes.bar(names, [figure.value or 0.0 for figure in figures], color=[colors[name] for name in names])
    axes.bar_label(bars, fmt="%d")
    history = f" of {figures[0].history / 1000:.1f}k tokens" if figures else ""
    axes.set(ylabel=f"branches{history}", title="Branches alive in the fixed pool")
