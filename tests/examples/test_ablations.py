"""The page of ablations, from folders with known answers."""

from __future__ import annotations

from pathlib import Path

import pytest

from star_kv_sglang.tools.eval.runner import Protocol
from star_kv_sglang.tools.eval.suite.variants import ABLATIONS, Cell
from tests.eval.suite_cases import answers, write_cells
from tinygui import ablations

ALL, SOME = [True] * 5, [True, True, False, True, True]


def test_a_page_has_a_table_for_every_model_world_and_protocol_that_was_asked(tmp_path: Path) -> None:
    persistent = Protocol.PERSISTENT
    write_cells(
        tmp_path / "second-pages",
        {
            Cell("full", 1.0, persistent): [answers(ALL), answers(ALL)],
            Cell("star", 0.1, persistent): [answers(ALL), answers(SOME)],
            Cell("star.no-prior", 0.1, persistent): [answers(SOME), answers(SOME)],
        },
    )
    text = ablations.page(tmp_path)
    assert "## Second model, pages" in text and "## First model" not in text
    assert "### Persistent; the full cache: 1.000" in text and "### Stateless" not in text
    assert "| less the subspace prior | 10 % | 10 | 0.800 | 0.900 | 1 / 0 | 1.000 |" in text


def test_every_suite_is_asked_for_the_same_variants(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[tuple[str, ...]] = []
    monkeypatch.setattr(ablations, "_run", lambda *words: runs.append(words))
    ablations.play(tmp_path, questions=25, jobs=2, max_seconds=None)
    suites = [words for words in runs if "suite" in words]
    assert len(runs) == 6 and len(suites) == 4
    assert {words[words.index("--count") + 1] for words in runs if "--count" in words} == {"3"}
    (asked,) = {words[words.index("--policies") + 1] for words in suites}
    assert asked.split(",") == ["full", "star", *(one.name for one in ABLATIONS if one.of == "star")]
