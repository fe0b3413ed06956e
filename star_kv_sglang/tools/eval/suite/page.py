"""The page of results and the table of figures, from a suite's folder."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from star_kv_sglang.policies import REFUSED
from star_kv_sglang.tools.eval.runner import Protocol
from star_kv_sglang.tools.eval.statistics import p_text
from star_kv_sglang.tools.eval.suite.plots import draw_all
from star_kv_sglang.tools.eval.suite.questions import TASKS, SuiteTask
from star_kv_sglang.tools.eval.suite.records import load_settings
from star_kv_sglang.tools.eval.suite.tables import Against, CellResult, Share, SuiteResults, against
from star_kv_sglang.tools.eval.suite.variants import ABLATIONS, FULL, POLICIES, PROTOCOLS, REFERENCE

TARGETS = (
    (Protocol.PERSISTENT, 0.2, SuiteTask.MOVED, 0.98),
    (Protocol.PERSISTENT, 0.1, SuiteTask.MOVED, 0.95),
    (Protocol.PERSISTENT, 0.05, SuiteTask.MOVED, 0.80),
    (Protocol.STATELESS, 0.4, None, 0.99),
    (Protocol.STATELESS, 0.2, None, 0.95),
)
"""Share of the full cache's figure that `star` is to reach: in a task, or in the mean over all."""


def write_csv(results: SuiteResults, path: Path) -> None:
    """A row for each cell and task, and for each age of the recalls."""
    rows = [row for cell in results.all() for row in _rows(results, cell)]
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def _rows(results: SuiteResults, cell: CellResult) -> list[dict[str, Any]]:
    full, star = results.reference(cell, FULL), results.reference(cell)
    rows = []
    for task in TASKS:
        backs = sorted({a.back for a in cell.outcome.values() if a.task is task})
        for back in [None, *backs] if len(backs) > 1 else [None]:
            share = cell.share(task, back)
            low, high = share.interval
            row: dict[str, Any] = {
                "variant": cell.variant.name,
                "budget": cell.cell.budget,
                "protocol": cell.cell.protocol.value,
                "task": task.value,
                "back": "all" if back is None else back,
                "right": share.right,
                "asked": share.asked,
                "share": f"{share.value:.4f}",
                "low": f"{low:.4f}",
                "high": f"{high:.4f}",
            }
            for name, other in (("full", full), ("star", star)):
                test = against(cell, other, task) if other is not None and back is None else None
                row[f"lost_to_{name}"] = "" if test is None else test.lost
                row[f"gained_on_{name}"] = "" if test is None else test.gained
                row[f"p_{name}"] = "" if test is None else f"{test.p_value:.3g}"
            rows.append(row)
    return rows


@dataclass(frozen=True)
class Target:
    """What `star` is to reach, and what it reaches."""

    what: str
    wanted: float
    reached: float
    mine: Share | None
    others: Share | None

    @property
    def met(self) -> bool:
        """Whether it does."""
        return self.reached >= self.wanted


def targets(results: SuiteResults) -> list[Target]:
    """Those whose cells were run."""
    found = []
    for protocol, budget, task, wanted in TARGETS:
        star, full = results.get(REFERENCE, budget, protocol), results.get(FULL, budget, protocol)
        if star is None or full is None:
            continue
        test = against(star, full, task)
        what = f"{protocol.value}, {100 * budget:g} %, {task.value if task else 'mean over the tasks'}"
        found.append(
            Target(
                what,
                wanted,
                test.mean / test.other,
                star.share(task) if task else None,
                full.share(task) if task else None,
            )
        )
    return found


@dataclass(frozen=True)
class Row:
    """A policy's line in a table: its cell, and how it stands against `star` and against the full cache."""

    result: CellResult
    to_star: Against | None
    to_full: Against | None


def table(results: SuiteResults, budget: float, protocol: Protocol, names: Sequence[str] = POLICIES) -> list[Row]:
    """The rows of a table, the highest mean first."""
    rows = []
    for cell in results.row(budget, protocol, names):
        star, full = results.get(REFERENCE, budget, protocol), results.get(FULL, budget, protocol)
        to_star = against(cell, star) if star is not None and star is not cell else None
        rows.append(Row(cell, to_star, against(cell, full) if full is not None and full is not cell else None))
    return sorted(rows, key=lambda row: -row.result.mean)


@dataclass(frozen=True)
class Ablated:
    """An ablation's line: the changed policy against the policy as it is."""

    result: CellResult
    base: CellResult
    test: Against


def ablations(results: SuiteResults, of: str, protocol: Protocol) -> list[Ablated]:
    """All ablations of a policy under a protocol, budget by budget."""
    found = []
    for budget in results.budgets(protocol):
        base = results.get(of, budget, protocol)
        for variant in ABLATIONS:
            cell = results.get(variant.name, budget, protocol) if variant.of == of else None
            if cell is not None and base is not None:
                found.append(Ablated(cell, base, against(cell, base)))
    return found


def write_page(folder: Path, page: Path, *, pictures: Path, figures: Path) -> list[Path]:
    """Writes the page, its plots and its table of figures.

    Args:
        folder: the suite's.
        page: the Markdown file.
        pictures: folder of the plots; below the page's folder.
        figures: the CSV file.

    Returns:
        What was written.

    Raises:
        EvalError: the folder holds no results, or matplotlib is not installed.
    """
    results = SuiteResults(folder)
    write_csv(results, figures)
    drawn = draw_all(results, pictures)
    environment = Environment(
        loader=PackageLoader("star_kv_sglang.tools.eval.suite"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["share"] = _share
    environment.filters["p"] = p_text
    text = environment.get_template("results.md.jinja").render(
        settings=load_settings(folder),
        results=results,
        tasks=TASKS,
        protocols=PROTOCOLS,
        policies=POLICIES,
        refused=REFUSED,
        targets=targets(results),
        table=table,
        ablations=ablations,
        MOVED=SuiteTask.MOVED,
        plots=[(path.stem, path.relative_to(page.parent).as_posix()) for path in drawn],
        figures=figures.name,
    )
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(text, encoding="utf-8")
    return [page, figures, *drawn]


def _share(value: float) -> str:
    """0.973 as ``.973``, and 1 as ``1``: columns of shares are read, not computed with."""
    if value != value:
        return ""
    return "1" if value >= 0.9995 else f"{value:.3f}".removeprefix("0")
