"""Small trajectories, and a suite's folder with known answers."""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path

from PIL import Image

from star_kv_sglang.tools.eval.suite.play import Answer
from star_kv_sglang.tools.eval.suite.questions import SuiteTask
from star_kv_sglang.tools.eval.suite.records import CellFile, open_folder
from star_kv_sglang.tools.eval.suite.variants import Cell
from star_kv_sglang.tools.rollout.trajectory import LabelledBox, Question, Trajectory, Turn

SETTINGS = {
    "model": "tiny",
    "questions": "q.json",
    "questions_sha256": "0123",
    "num_trajectories": 2,
    "machine": "a machine",
    "versions": "SGLang 0, torch 0",
    "dtype": "float32",
}


def recall(answer: str, *, label: str = "red K", back: int = 1, moved: bool = True) -> Question:
    """A recall of what stood at a place."""
    return Question(f"recall {label} step1", answer, (0, 0, 400, 400), back, moved)


def trajectory(number: int) -> Trajectory:
    """Three turns: a click, a read, and two recalls; blue B of the first stands elsewhere now."""
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), "white").save(buffer, format="PNG")
    png = buffer.getvalue()
    click = Question("click red A here", "x2 y2", (0, 0, 40, 40), 0, False)
    read = Question("read x2 y2 here", "red A", (0, 0, 40, 40), 0, False)
    recalls = (recall("x11 y11", label="blue B", back=1, moved=True), recall("x2 y2", back=2, moved=False))
    widgets = (LabelledBox((80, 80, 32, 32), "blue", "B"),)
    return Trajectory(
        number,
        (Turn("step1", png, (click,)), Turn("step2", png, (read,)), Turn("step3", png, recalls, widgets)),
    )


def answers(rights: Iterable[bool], back: int = 1) -> list[Answer]:
    """One answer of each task, right or not."""
    pairs = zip(SuiteTask, rights, strict=True)
    return [Answer(task, f"{i}.0", back if i > 1 else 0, right, "x1 y1") for i, (task, right) in enumerate(pairs)]


def write_cells(folder: Path, cells: dict[Cell, list[list[Answer]]]) -> None:
    """A suite's folder with these answers, one list for each trajectory."""
    open_folder(folder, SETTINGS)
    for cell, rows in cells.items():
        file = CellFile(folder, cell)
        for number, row in enumerate(rows):
            file.add(number, row)
