"""The page of windows' answers: what each way asks, and how answers become a table. The engine is the page's own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.architecture.imports import ROOT
from tinygui import windows
from tinygui.recall import recall_case
from tinygui.windows import KINDS, kind_of, main, messages_of, page, ways

WINDOW = 3


def test_where_a_screen_lies_for_a_client() -> None:
    assert [kind_of(back, WINDOW) for back in range(1, 6)] == [KINDS[0], KINDS[1], KINDS[2], KINDS[2], KINDS[2]]


def test_a_client_drops_the_messages_of_old_screenshots_and_keeps_its_own_answers() -> None:
    case = recall_case(8_500_001, 6, 5)
    whole = messages_of(case, 5, "asked", 0)
    assert [one["role"] for one in whole] == ["user", "assistant"] * 5 + ["user"]
    short = messages_of(case, 5, "asked", 3)
    assert [one["role"] for one in short] == ["assistant"] * 3 + ["user", "assistant"] * 2 + ["user"]
    assert short[-1] == whole[-1]
    assert short[3] == whole[6]


def test_every_way_asks_the_same_with_its_own_wishes() -> None:
    assert [way.drops for way in ways(WINDOW)] == [True, True, True, False, False, False, False]
    assert [way.wishes.get("kv_image_window") for way in ways(WINDOW)] == [None, None, None, 2, 3, None, None]
    assert [way.wishes["kv_budget"] for way in ways(WINDOW)] == [1.0, 1.0, 1.0, 1.0, 1.0, 0.5, 1.0]
    assert [way.one_by_one for way in ways(WINDOW)] == [False, False, True, False, False, False, False]


def test_the_table_compares_with_the_prompts_computed_anew(tmp_path: Path) -> None:
    backs, names = [1, 2, 3, 4, 5], [way.name for way in ways(WINDOW)]
    wrong_once = [False, True, False, False, True]
    rows = [
        {"back": backs, "right": {**dict.fromkeys(names, [True] * 5), names[0]: [True, True, False, False, False]}},
        {"back": backs, "right": {**dict.fromkeys(names, [True] * 5), names[0]: [True] * 5, names[1]: wrong_once}},
    ]
    (tmp_path / "first-panels.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    text = page(tmp_path, WINDOW)
    assert "## First model, panels, 2 trajectories" in text
    assert "inside, 2 questions | oldest inside, 2 questions | dropped, 6 questions" in text
    (reference, recognised, _, *together) = (line for line in text.splitlines() if line.startswith("| last 3"))
    assert reference == "| last 3, computed anew | 1.000 | 1.000 | 0.500 |"
    assert recognised.startswith("| last 3, recognised | 0.500 (-1 +0, p")
    assert "0.667 (-2 +3, p" in recognised
    assert "inside or oldest inside, 4 questions | dropped, 6 questions" in text
    assert together[0] == "| last 3, computed anew | 1.000 | 0.500 |"
    assert together[1].startswith("| last 3, recognised | 0.750 (-1 +0, p")


def test_it_goes_on_where_it_was_and_ends_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    class Player:
        def __init__(self, model: Path, window: int) -> None:
            self.engine = self

        def shutdown(self) -> None: ...

        def ask(self, case: object, way: windows.Way) -> list[bool]:
            asked.append(way.name)
            return [True] * 10

    monkeypatch.setattr(windows, "Player", Player)
    words = ["--out", str(tmp_path), "--models", "first", "--worlds", "panels", "--page", str(tmp_path / "page.md")]
    main([*words, "--count", "1"])
    main([*words, "--count", "2"])
    assert len(asked) == 2 * len(ways(WINDOW))
    main([*words, "--count", "3", "--max-seconds", "0"])
    assert len(asked) == 2 * len(ways(WINDOW))
    assert "2 trajectories" in (tmp_path / "page.md").read_text(encoding="utf-8")


def test_the_page_in_the_documentation_is_that_of_the_answers_in_the_repository() -> None:
    written = (ROOT / "docs" / "window-answers.md").read_text(encoding="utf-8")
    assert written == page(ROOT / "benchmarks" / "window_answers", WINDOW)
