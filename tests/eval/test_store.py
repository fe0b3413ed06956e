"""Run folders: cut lines, damaged lines, other runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from star_kv_sglang.tools.eval.errors import MalformedRow, RunFolderError
from star_kv_sglang.tools.eval.store import RunFolder, load_run
from tests.eval.cases import result

SETTINGS = {"benchmark": "colours", "headline": "accuracy"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    with RunFolder(tmp_path, SETTINGS, "star-20") as run:
        run.add(result("a", 1.0, reply="line separator \u2028 and \u0085 stay in their line"))
        run.add(result("b", 0.0, parts={"grounding": 0.5}, groups={"platform": "web"}))
        run.add_problems([MalformedRow(Path("x.json"), "row 3", "is empty")])
    return tmp_path


def test_a_run_reads_back_as_it_was_written(folder: Path) -> None:
    run = load_run(folder)
    assert (run.label, run.settings, run.num_problems) == ("star-20", SETTINGS, 1)
    assert run.results == (
        result("a", 1.0, reply="line separator \u2028 and \u0085 stay in their line"),
        result("b", 0.0, parts={"grounding": 0.5}, groups={"platform": "web"}),
    )


def test_the_last_line_of_a_sample_counts(folder: Path) -> None:
    with RunFolder(folder, SETTINGS, "star-20") as run:
        assert sorted(run.done) == ["a", "b"]
        run.add(result("a", 0.25))
    assert {item.sample: item.score for item in load_run(folder).results} == {"a": 0.25, "b": 0.0}


def test_a_line_that_was_cut_is_asked_again(folder: Path) -> None:
    results = folder / "results.jsonl"
    whole = results.read_bytes()
    results.write_bytes(whole + b'{"sample": "c", "epis')
    assert [item.sample for item in load_run(folder).results] == ["a", "b"]
    assert results.read_bytes() != whole, "reading changes nothing"
    with RunFolder(folder, SETTINGS, "star-20") as run:
        assert sorted(run.done) == ["a", "b"]
        assert results.read_bytes() == whole
        run.add(result("c"))
    assert len(load_run(folder).results) == 3


@pytest.mark.parametrize("line", ["{", '{"sample": "c"}', '{"status": "odd"}', "[1]"])
def test_a_damaged_line_is_named(folder: Path, line: str) -> None:
    with (folder / "results.jsonl").open("a", encoding="utf-8") as file:
        file.write(f"{line}\n")
    with pytest.raises(RunFolderError, match=r"results\.jsonl: line 3 is damaged"):
        load_run(folder)


def test_a_folder_without_a_run(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match=r"run\.json does not exist; give a folder that star-kv eval run wrote"):
        load_run(tmp_path)
    (tmp_path / "run.json").write_text("{}", encoding="utf-8")
    with pytest.raises(RunFolderError, match="was not written by star-kv eval"):
        load_run(tmp_path)
    (tmp_path / "run.json").write_text("[", encoding="utf-8")
    with pytest.raises(RunFolderError, match="is damaged"):
        load_run(tmp_path)


def test_other_settings_are_listed(folder: Path) -> None:
    with pytest.raises(RunFolderError, match="headline: 'accuracy' there, None now"):
        RunFolder(folder, {"benchmark": "colours"}, "star-20")
