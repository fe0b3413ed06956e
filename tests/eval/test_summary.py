"""Figures of runs and of pairs of runs, by hand."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import pytest
from rich.console import Console

from star_kv_sglang.tools.eval.errors import RunFolderError
from star_kv_sglang.tools.eval.report import build_grid, comparison_tables, find_runs, grid_table, run_tables
from star_kv_sglang.tools.eval.store import Result, Run, RunFolder, Status
from star_kv_sglang.tools.eval.summary import compare, summarize
from tests.eval.cases import result

SETTINGS = {"benchmark": "screenspot-v2", "headline": "accuracy", "dataset": "1", "family": "ui-tars-1.5"}


def made(label: str, results: Sequence[Result], **changes: object) -> Run:
    return Run(Path(label), {**SETTINGS, **changes}, label, tuple(results), 2)


def in_groups(sample: str, score: float, platform: str, **changes: object) -> Result:
    return result(sample, score, groups={"platform": platform}, **changes)


FULL = made(
    "full",
    [
        in_groups("1", 1.0, "web", cached_tokens=40),
        in_groups("2", 1.0, "web", parts={"grounding": 0.5}, cached_tokens=20),
        in_groups("3", 0.0, "mobile", status=Status.UNREADABLE),
        in_groups("4", 1.0, "mobile", finish_reason="length", completion_tokens=50),
        in_groups("5", 0.0, "mobile", status=Status.FAILED, completion_tokens=0, prompt_tokens=0),
    ],
)
STAR = made(
    "star-20",
    [
        in_groups("1", 1.0, "web"),
        in_groups("2", 0.0, "web", completion_tokens=20),
        in_groups("3", 1.0, "mobile"),
        in_groups("4", 1.0, "mobile", reply="other words", completion_tokens=60),
        in_groups("5", 1.0, "mobile"),
    ],
)


def rendered(renderable: object) -> str:
    page = io.StringIO()
    Console(width=250, file=page).print(renderable)
    return page.getvalue()


def test_a_run_in_figures() -> None:
    summary = summarize(FULL)
    assert summary.score is not None
    assert (summary.score.mean, summary.score.num_samples) == (0.75, 4), "the failed one does not count"
    assert (summary.num_unreadable, summary.num_failed, summary.num_cut_off, summary.num_problems) == (1, 1, 1, 2)
    assert summary.parts["grounding"].mean == 0.5 and summary.parts["grounding"].num_samples == 1
    assert {name: estimate.mean for name, estimate in summary.groups["platform"].items()} == {"mobile": 0.5, "web": 1.0}
    assert summary.mean_output_tokens == (10 + 10 + 10 + 50) / 4
    assert summary.cached_share == 60 / 400


def test_a_run_without_scores() -> None:
    summary = summarize(made("full", [result("1", status=Status.FAILED)]))
    assert summary.score is None and summary.cached_share is None and summary.num_failed == 1
    assert "1 requests failed" in rendered(run_tables(summary))


def test_groups_sort_as_people_do() -> None:
    rows = [result(str(back), groups={"age": f"{back} back"}) for back in (10, 2, 1)]
    assert list(summarize(made("full", rows)).groups["age"]) == ["1 back", "2 back", "10 back"]


def test_a_pair_in_figures() -> None:
    pair = compare(FULL, STAR)
    assert pair.num_common == 4, "samples that both have scored"
    assert (pair.reference.mean, pair.other.mean) == (0.75, 0.75)
    assert (pair.test.num_lost, pair.test.num_gained, pair.test.p_value) == (1, 1, 1.0)
    assert pair.num_actions_changed == 2 and pair.num_replies_changed == 3
    assert pair.output_ratio == (10 + 20 + 10 + 60) / (10 + 10 + 10 + 50)
    assert {name: test.difference.mean for name, test in pair.groups["platform"].items()} == {
        "mobile": 0.5,
        "web": -0.5,
    }


@pytest.mark.parametrize("name", ["benchmark", "dataset", "family", "max_tokens"])
def test_runs_that_were_asked_differently_do_not_compare(name: str) -> None:
    with pytest.raises(RunFolderError, match=f"were not asked the same: {name}"):
        compare(FULL, made("star-20", STAR.results, **{name: "other"}))


def test_runs_without_a_common_sample_do_not_compare() -> None:
    with pytest.raises(RunFolderError, match="no scored sample in common"):
        compare(FULL, made("star-20", [result("9")]))


def test_the_tables_show_the_figures() -> None:
    text = rendered(comparison_tables(summarize(FULL), [compare(FULL, STAR)]))
    for shown in ("star-20", "75.0", "+0.0 (", "1.000", "2 (50.0%)", "x1.25", "McNemar exact", "mobile", "+50.0"):
        assert shown in text
    assert "75.0 (" in rendered(run_tables(summarize(FULL)))


def test_folders_of_runs_make_a_grid(tmp_path: Path) -> None:
    scores = {("full", "a"): 1.0, ("full", "b"): 0.0, ("star-20", "a"): 0.5}
    for (label, benchmark), score in scores.items():
        with RunFolder(tmp_path / label / benchmark, {**SETTINGS, "benchmark": benchmark}, label) as folder:
            folder.add(result("1", score))
    grid = build_grid([tmp_path / "full", tmp_path / "star-20"])
    text = rendered(grid_table(grid))
    assert "50.00" in text.split("full")[1].splitlines()[0], "the mean of 100 and 0"
    assert list(find_runs(tmp_path / "full" / "a")) == ["a"]


def test_folders_that_hold_no_run_or_two_of_a_kind(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="holds no run"):
        find_runs(tmp_path)
    for name in ("one", "two"):
        RunFolder(tmp_path / name, SETTINGS, name).__exit__(None, None, None)
    with pytest.raises(RunFolderError, match="holds two runs of screenspot-v2"):
        find_runs(tmp_path)
