"""Shares of right answers, their intervals, and paired tests, from the cells of a suite's folder."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from star_kv_sglang.tools.eval.errors import RunFolderError
from star_kv_sglang.tools.eval.runner import Protocol
from star_kv_sglang.tools.eval.statistics import mcnemar, wilson
from star_kv_sglang.tools.eval.suite.ages import Kept
from star_kv_sglang.tools.eval.suite.play import Answer
from star_kv_sglang.tools.eval.suite.questions import TASKS, SuiteTask
from star_kv_sglang.tools.eval.suite.records import AGES, load_cell
from star_kv_sglang.tools.eval.suite.variants import (
    ABLATIONS,
    BUDGETS,
    FULL,
    POLICIES,
    PROTOCOLS,
    REFERENCE,
    Cell,
    Variant,
)

Outcome = dict[tuple[int, str], Answer]
"""A cell's answers by trajectory and place."""

VARIANTS: Final = (*(Variant(name, name) for name in POLICIES), *ABLATIONS)


@dataclass(frozen=True)
class Share:
    """Right answers of questions.

    Attributes:
        right, asked: counts.
    """

    right: int
    asked: int

    @property
    def value(self) -> float:
        """The share; not a number when nothing was asked."""
        return self.right / self.asked if self.asked else float("nan")

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's, 95%."""
        return wilson(self.right, self.asked)

    @classmethod
    def of(cls, answers: Iterable[Answer]) -> Share:
        """Of some answers."""
        rights = [answer.right for answer in answers]
        return cls(sum(rights), len(rights))


@dataclass(frozen=True)
class Against:
    """A cell against another, on the questions that both were asked.

    Attributes:
        mean, other: the cell's and the other's mean over the tasks.
        lost, gained: questions that only the other answered, and only this one.
        p_value: exact, two-sided: each of these was as likely to be lost as gained.
        common: questions of both.
    """

    mean: float
    other: float
    lost: int
    gained: int
    p_value: float
    common: int


@dataclass(frozen=True)
class CellResult:
    """A cell's figures.

    Attributes:
        variant, cell: what was run.
        outcome: its answers.
        kept: tokens left by screenshots ago, where they were traced.
    """

    variant: Variant
    cell: Cell
    outcome: Outcome
    kept: Kept

    def share(self, task: SuiteTask, back: int | None = None) -> Share:
        """Of a task, of one age when ``back`` is given."""
        return Share.of(a for a in self.outcome.values() if a.task is task and back in (None, a.back))

    @property
    def mean(self) -> float:
        """The mean over the tasks, each counting the same."""
        return mean_over_tasks(self.outcome.values())


def mean_over_tasks(answers: Iterable[Answer]) -> float:
    """The mean of the tasks' shares; not a number when a task has no answers."""
    rows = list(answers)
    shares = [Share.of(answer for answer in rows if answer.task is task).value for task in TASKS]
    return sum(shares) / len(shares)


def against(one: CellResult, other: CellResult, task: SuiteTask | None = None) -> Against:
    """Compares two cells, over all tasks or in one."""
    common = [
        key for key, answer in one.outcome.items() if key in other.outcome and (task is None or answer.task is task)
    ]
    mine, others = [one.outcome[key] for key in common], [other.outcome[key] for key in common]
    lost = sum(b.right and not a.right for a, b in zip(mine, others, strict=True))
    gained = sum(a.right and not b.right for a, b in zip(mine, others, strict=True))
    means = [mean_over_tasks(answers) if task is None else Share.of(answers).value for answers in (mine, others)]
    return Against(means[0], means[1], lost, gained, mcnemar(lost, gained), len(common))


class SuiteResults:
    """All cells of a folder that hold answers.

    Args:
        folder: the suite's.

    Raises:
        RunFolderError: there are none, or a file is damaged.
    """

    def __init__(self, folder: Path) -> None:
        self._cells: dict[Cell, CellResult] = {}
        for variant in VARIANTS:
            for budget in BUDGETS if variant.prunes else (1.0,):
                for protocol in PROTOCOLS:
                    cell = Cell(variant.name, budget, protocol)
                    answers = load_cell(folder, cell)
                    if answers:
                        outcome = {(number, a.place): a for number, rows in answers.items() for a in rows}
                        self._cells[cell] = CellResult(variant, cell, outcome, _kept(folder, cell))
        if not self._cells:
            raise RunFolderError(f"{folder} holds no answers yet")

    def all(self) -> Sequence[CellResult]:
        """Every cell, policies before ablations."""
        return list(self._cells.values())

    def get(self, variant: str, budget: float, protocol: Protocol) -> CellResult | None:
        """A cell, if it was run; the full cache has every budget."""
        return self._cells.get(Cell(variant, 1.0 if variant == FULL else budget, protocol))

    def budgets(self, protocol: Protocol) -> list[float]:
        """Budgets that were run, the largest first."""
        found = {cell.budget for cell in self._cells if cell.protocol is protocol and cell.variant != FULL}
        return sorted(found, reverse=True)

    def row(self, budget: float, protocol: Protocol, names: Sequence[str] = POLICIES) -> list[CellResult]:
        """The cells of a table."""
        found = (self.get(name, budget, protocol) for name in names)
        return [one for one in found if one is not None]

    def reference(self, result: CellResult, name: str = REFERENCE) -> CellResult | None:
        """The cell of another variant at the same budget, under the same protocol."""
        return self.get(name, result.cell.budget, result.cell.protocol)


def _kept(folder: Path, cell: Cell) -> Kept:
    path = folder / AGES / f"{cell.name}.json"
    if not path.exists():
        return {}
    rows: Mapping[str, Sequence[int]] = json.loads(path.read_text(encoding="utf-8"))
    return {int(age): (counts[0], counts[1]) for age, counts in rows.items()}
