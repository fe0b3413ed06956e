"""Records, shares, tests and the page, on answers that are known."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from star_kv_sglang.tools.eval.errors import RunFolderError
from star_kv_sglang.tools.eval.runner import Protocol
from star_kv_sglang.tools.eval.statistics import wilson
from star_kv_sglang.tools.eval.suite.ages import kept_by_age
from star_kv_sglang.tools.eval.suite.page import targets, write_page
from star_kv_sglang.tools.eval.suite.questions import SuiteTask
from star_kv_sglang.tools.eval.suite.records import CellFile, load_cell, open_folder
from star_kv_sglang.tools.eval.suite.tables import SuiteResults, against
from star_kv_sglang.tools.eval.suite.variants import Cell
from tests.eval.suite_cases import SETTINGS, answers, write_cells

YES, NO = [True] * 5, [False] * 5
PERSISTENT = Protocol.PERSISTENT
FULL, STAR, RANDOM = (
    Cell("full", 1.0, PERSISTENT),
    Cell("star", 0.2, PERSISTENT),
    Cell("random", 0.2, PERSISTENT),
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four trajectories: `star` fails one question, `random` all of two trajectories."""
    almost = [True, True, True, False, True]
    write_cells(
        tmp_path / "suite",
        {
            FULL: [answers(YES)] * 4,
            STAR: [answers(YES), answers(YES), answers(YES), answers(almost)],
            RANDOM: [answers(YES), answers(YES), answers(NO), answers(NO)],
        },
    )
    return tmp_path / "suite"


def test_answers_are_read_as_they_were_written(folder: Path) -> None:
    assert load_cell(folder, STAR)[0] == answers(YES)
    assert load_cell(folder, Cell("h2o", 0.2, PERSISTENT)) == {}


def test_a_line_that_was_cut_is_played_again(folder: Path) -> None:
    path = folder / "cells" / f"{STAR.name}.jsonl"
    path.write_bytes(path.read_bytes()[:-20])
    assert CellFile(folder, STAR).done == {0, 1, 2}
    assert len(path.read_text().splitlines()) == 3


def test_a_damaged_line_is_named(folder: Path) -> None:
    path = folder / "cells" / f"{STAR.name}.jsonl"
    path.write_text("{}\n")
    with pytest.raises(RunFolderError, match=r"star-20-persistent.jsonl: line 1 is damaged"):
        CellFile(folder, STAR)


def test_other_questions_in_the_same_folder_are_refused(folder: Path) -> None:
    with pytest.raises(RunFolderError, match=r"questions_sha256: '0123' there, '4567' now"):
        open_folder(folder, {**SETTINGS, "questions_sha256": "4567"})


def test_shares_and_means(folder: Path) -> None:
    results = SuiteResults(folder)
    star = results.get("star", 0.2, PERSISTENT)
    assert star is not None
    share = star.share(SuiteTask.MOVED)
    assert (share.right, share.asked, share.value) == (3, 4, 0.75)
    assert star.mean == pytest.approx((1 + 1 + 1 + 0.75 + 1) / 5)
    assert star.share(SuiteTask.MOVED, back=2).asked == 0


def test_paired_tests_count_what_only_one_answered(folder: Path) -> None:
    results = SuiteResults(folder)
    star, random = (results.get(name, 0.2, PERSISTENT) for name in ("star", "random"))
    assert star is not None and random is not None
    test = against(random, star)
    assert (test.lost, test.gained, test.common) == (9, 0, 20)
    assert test.p_value == pytest.approx(2 / 2**9)
    assert against(random, star, SuiteTask.MOVED).p_value == 1.0


def test_the_full_cache_stands_beside_every_budget(folder: Path) -> None:
    results = SuiteResults(folder)
    assert results.get("full", 0.03, PERSISTENT) is results.get("full", 0.2, PERSISTENT)
    assert results.budgets(PERSISTENT) == [0.2] and results.budgets(Protocol.STATELESS) == []


def test_targets_are_shares_of_the_full_cache(folder: Path) -> None:
    (target,) = targets(SuiteResults(folder))
    assert (target.wanted, target.reached, target.met) == (0.98, 0.75, False)


def test_the_page_has_the_tables_and_the_figures(folder: Path, tmp_path: Path) -> None:
    (folder / "ages" / f"{STAR.name}.json").write_text(json.dumps({"0": [5, 20], "1": [3, 20]}))
    page = tmp_path / "docs" / "results.md"
    written = write_page(folder, page, pictures=page.parent / "img", figures=page.with_suffix(".csv"))
    text = page.read_text()
    assert "| `star` | 1 | 1 | 1 | .750 | 1 | .950 |  | 1.000 |" in text
    assert "| `random` | .500 | .500 | .500 | .500 | .500 | .500 | 9 / 0, 0.004 | 0.002 |" in text
    assert "| `star` | 20 % | 0: .250, 1: .150 |" in text
    assert "- `pyramidkv` is not in the tables: its only difference from snapkv" in text
    assert "{" not in text
    assert {path.suffix for path in written} == {".md", ".csv", ".svg"} and all(path.exists() for path in written)
    with page.with_suffix(".csv").open() as file:
        rows = list(csv.DictReader(file))
    (row,) = [r for r in rows if r["variant"] == "random" and r["task"] == "click" and r["back"] == "all"]
    assert (row["right"], row["asked"], row["lost_to_star"], row["gained_on_star"]) == ("2", "4", "2", "0")


def test_an_empty_folder_has_no_page(tmp_path: Path) -> None:
    open_folder(tmp_path, SETTINGS)
    with pytest.raises(RunFolderError, match="holds no answers yet"):
        SuiteResults(tmp_path)


def _trace(folder: Path, number: int, rid: str, frame: int, num_frames: int, kept: int) -> None:
    meta = {"rid": rid, "frame_index": frame, "num_frames": num_frames, "grid": [2, 5]}
    content = {"kept": np.zeros((3, kept), np.int32), "meta": np.frombuffer(json.dumps(meta).encode(), np.uint8)}
    np.savez(folder / f"{number:06d}.npz", **content)  # type: ignore[arg-type]


def test_what_is_left_by_age_is_that_of_the_last_prune(tmp_path: Path) -> None:
    """Conversation a: the first screenshot is pruned to 4, later to 2. Its shorter cousin b does not count."""
    _trace(tmp_path, 0, "a@0.0", 0, 1, 4)
    _trace(tmp_path, 1, "a@1.0", 0, 2, 2)
    _trace(tmp_path, 2, "a@1.0", 1, 2, 6)
    _trace(tmp_path, 3, "b@0.0", 0, 1, 9)
    assert kept_by_age(tmp_path) == {0: (6, 10), 1: (2, 10)}
    assert kept_by_age(tmp_path / "nothing") == {}


@pytest.mark.parametrize(
    ("right", "asked", "low", "high"),
    [(0, 10, 0.0, 0.2775), (5, 10, 0.2366, 0.7634), (10, 10, 0.7225, 1.0), (0, 0, 0.0, 1.0)],
)
def test_wilsons_interval(right: int, asked: int, low: float, high: float) -> None:
    """Against the closed form in R's binom::binom.wilson."""
    assert wilson(right, asked) == pytest.approx((low, high), abs=1e-4)
