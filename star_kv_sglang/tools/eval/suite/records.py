"""The suite's folder: what was run, and one JSONL file for each cell with a line for each trajectory.

::

    suite.json                              what is asked: model, questions, device
    cells/star-20-persistent.jsonl          {"trajectory": 7, "answers": [{"task": ..., "place": "5.2", ...}, ...]}
    ages/star-20-persistent.json            share of tokens kept, by screenshots ago
    engines/star.json                       an engine's start and run time, its policy's counters
    vision/7.pt                             screenshots behind the vision tower; may be deleted
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from star_kv_sglang.tools.eval.errors import RunFolderError
from star_kv_sglang.tools.eval.store import read_lines
from star_kv_sglang.tools.eval.suite.play import Answer
from star_kv_sglang.tools.eval.suite.questions import SuiteTask
from star_kv_sglang.tools.eval.suite.variants import Cell

SETTINGS_FILE = "suite.json"
CELLS = "cells"
AGES = "ages"
ENGINES = "engines"
VISION = "vision"


def open_folder(folder: Path, settings: Mapping[str, Any]) -> None:
    """Makes the folder, or checks that it holds results of the same questions.

    Raises:
        RunFolderError: it holds others; the message lists what differs.
    """
    for name in (CELLS, AGES, ENGINES, VISION):
        (folder / name).mkdir(parents=True, exist_ok=True)
    path = folder / SETTINGS_FILE
    if path.exists():
        before = load_settings(folder)
        changed = sorted(name for name in {*before, *settings} if before.get(name) != settings.get(name))
        if changed:
            lines = "\n".join(f"  - {n}: {before.get(n)!r} there, {settings.get(n)!r} now" for n in changed)
            raise RunFolderError(f"{folder} holds results of other questions:\n{lines}\nGive another --out.")
    path.write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")


def load_settings(folder: Path) -> dict[str, Any]:
    """What was run.

    Raises:
        RunFolderError: the folder holds no suite.
    """
    path = folder / SETTINGS_FILE
    try:
        settings: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RunFolderError(f"{path} does not exist; give a folder that star-kv eval suite wrote") from None
    except ValueError as error:
        raise RunFolderError(f"{path} is damaged: {error}; use another folder") from error
    return settings


class CellFile:
    """The file of a cell; a trajectory is written when all of its questions are answered.

    Args:
        folder: the suite's.
        cell: the cell.
    """

    def __init__(self, folder: Path, cell: Cell) -> None:
        self._path = folder / CELLS / f"{cell.name}.jsonl"
        self.done = {number for number, _ in _read(self._path, repair=True)}

    def add(self, trajectory: int, answers: Sequence[Answer]) -> None:
        """Appends a trajectory's answers."""
        row = {"trajectory": trajectory, "answers": [asdict(answer) for answer in answers]}
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
        self.done.add(trajectory)


def load_cell(folder: Path, cell: Cell) -> dict[int, list[Answer]]:
    """A cell's answers by trajectory; empty when it was not run."""
    return dict(_read(folder / CELLS / f"{cell.name}.jsonl", repair=False))


def _read(path: Path, *, repair: bool) -> list[tuple[int, list[Answer]]]:
    rows = []
    for number, line in enumerate(read_lines(path, repair=repair), start=1):
        try:
            row = json.loads(line)
            answers = [Answer(**{**one, "task": SuiteTask(one["task"])}) for one in row["answers"]]
            rows.append((int(row["trajectory"]), answers))
        except (ValueError, KeyError, TypeError) as error:
            raise RunFolderError(f"{path}: line {number} is damaged ({error}); remove the line to go on") from error
    return rows
