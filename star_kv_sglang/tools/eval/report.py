"""The tables of runs and comparisons, for the terminal and as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table

from star_kv_sglang.tools.chat import HITS_UNKNOWN
from star_kv_sglang.tools.eval.errors import RunFolderError
from star_kv_sglang.tools.eval.statistics import Estimate, PairedTest
from star_kv_sglang.tools.eval.store import RUN_FILE, Run, load_run
from star_kv_sglang.tools.eval.summary import Comparison, Summary, summarize


def percent(estimate: Estimate) -> str:
    """``47.3 (45.1 to 49.6)``."""
    return f"{100 * estimate.mean:.1f} ({100 * estimate.low:.1f} to {100 * estimate.high:.1f})"


def points(estimate: Estimate) -> str:
    """A difference in percentage points: ``-2.4 (-3.9 to -1.0)``."""
    return f"{100 * estimate.mean:+.1f} ({100 * estimate.low:+.1f} to {100 * estimate.high:+.1f})"


def p_value(test: PairedTest) -> str:
    """A p-value with as many digits as it deserves."""
    return "<0.001" if test.p_value < 0.001 else f"{test.p_value:.3f}"


def run_tables(summary: Summary) -> RenderableType:
    """One run: its figures, and a table for each grouping."""
    head = _table(f"{summary.benchmark}: {summary.label}", "", "% (95% interval)", "samples")
    figures = ({} if summary.score is None else {summary.headline: summary.score}) | summary.parts
    for name, estimate in figures.items():
        head.add_row(name, percent(estimate), str(estimate.num_samples))
    groups = []
    for name, rows in summary.groups.items():
        table = _table(None, name, summary.headline, "samples")
        for group, estimate in rows.items():
            table.add_row(group, percent(estimate), str(estimate.num_samples))
        groups.append(table)
    return Group(head, *groups, counts_line(summary))


def counts_line(summary: Summary) -> str:
    """What did not go well, and how long prompts and replies were."""
    cached = HITS_UNKNOWN if summary.cached_share is None else f"{100 * summary.cached_share:.0f}%"
    return (
        f"{summary.num_unreadable} replies without an action (scored 0), {summary.num_cut_off} cut off at the token "
        f"limit, {summary.num_failed} requests failed (not scored), {summary.num_problems} rows left out. Mean tokens: "
        f"prompt {summary.mean_prompt_tokens:.0f} (cached: {cached}), reply {summary.mean_output_tokens:.1f}."
    )


def comparison_tables(reference: Summary, comparisons: Sequence[Comparison]) -> RenderableType:
    """Runs against a reference run: scores, what changed, then a table of differences for each grouping."""
    title = f"{reference.benchmark}: {reference.headline} against {reference.label}"
    scores = _table(title, "run", "samples", reference.label, "score", "difference", "p")
    changes = _table(None, "run", "lost", "gained", "actions changed", "reply length")
    for item in comparisons:
        test = item.test
        means = (f"{100 * item.reference.mean:.1f}", f"{100 * item.other.mean:.1f}")
        scores.add_row(item.label, str(item.num_common), *means, points(test.difference), p_value(test))
        changed = f"{item.num_actions_changed} ({100 * item.num_actions_changed / item.num_common:.1f}%)"
        changes.add_row(item.label, str(test.num_lost), str(test.num_gained), changed, f"x{item.output_ratio:.2f}")
    tests = sorted({item.test.test for item in comparisons})
    note = f"Differences in points, 95% intervals; p: {', '.join(tests)}; lost, gained: samples whose score fell, rose."
    return Group(scores, changes, *_group_tables(comparisons), note)


def _group_tables(comparisons: Sequence[Comparison]) -> list[Table]:
    tables = []
    for name in {name: None for item in comparisons for name in item.groups}:
        table = _table(None, name, *(item.label for item in comparisons))
        for group in {group: None for item in comparisons for group in item.groups.get(name, {})}:
            tests = [item.groups.get(name, {}).get(group) for item in comparisons]
            table.add_row(group, *("" if test is None else points(test.difference) for test in tests))
        tables.append(table)
    return tables


def grid_table(grid: Mapping[str, Mapping[str, Summary]]) -> Table:
    """Runs by label and benchmark, with the mean over benchmarks where a label has all of them."""
    benchmarks = sorted({name for runs in grid.values() for name in runs})
    table = _table("Headline figures, %", "run", *benchmarks, "mean")
    for label, runs in grid.items():
        scores = [None if name not in runs else runs[name].score for name in benchmarks]
        known = [score.mean for score in scores if score is not None]
        mean = f"{100 * sum(known) / len(known):.2f}" if known and len(known) == len(benchmarks) else ""
        table.add_row(label, *("" if score is None else f"{100 * score.mean:.2f}" for score in scores), mean)
    return table


def find_runs(folder: Path) -> dict[str, Run]:
    """The run of a folder, or those of its subfolders, by benchmark.

    Raises:
        RunFolderError: there is none, or two are of one benchmark.
    """
    if (folder / RUN_FILE).exists():
        run = load_run(folder)
        return {str(run.settings["benchmark"]): run}
    runs: dict[str, Run] = {}
    for path in sorted(folder.glob(f"*/{RUN_FILE}")):
        run = load_run(path.parent)
        name = str(run.settings["benchmark"])
        if name in runs:
            raise RunFolderError(f"{folder} holds two runs of {name}: {runs[name].folder} and {run.folder}")
        runs[name] = run
    if not runs:
        raise RunFolderError(f"{folder} holds no run ({RUN_FILE}), nor does a folder in it")
    return runs


def build_grid(folders: Sequence[Path]) -> dict[str, dict[str, Summary]]:
    """The summaries of several folders of runs, by the folder's name and benchmark."""
    return {
        folder.resolve().name: {name: summarize(run) for name, run in find_runs(folder).items()} for folder in folders
    }


def summary_json(summary: Summary) -> dict[str, Any]:
    """A summary as JSON."""
    return asdict(summary)


def comparison_json(reference: Summary, comparisons: Sequence[Comparison]) -> dict[str, Any]:
    """Comparisons as JSON, beside what they are compared with."""
    return {"reference": asdict(reference), "runs": [asdict(item) for item in comparisons]}


def _table(title: str | None, first: str, *others: str) -> Table:
    table = Table(first, title=title, title_justify="left", title_style="bold")
    for name in others:
        table.add_column(name, justify="right")
    return table
