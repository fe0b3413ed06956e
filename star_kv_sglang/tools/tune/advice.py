"""What the replayed turns say: of each cell, by how far back the answer lies, and which flags to serve with."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from star_kv_sglang.tools.eval.statistics import Estimate, PairedTest, bootstrap, paired_test, wilson
from star_kv_sglang.tools.tune.records import AGAIN, CellTurn, read_turns, turn_file
from star_kv_sglang.tools.tune.replay import Cell

FEW: Final = 100
"""Turns below which an interval of a share near 1 says little."""


@dataclass(frozen=True)
class Outcome:
    """A cell against the full cache.

    Attributes:
        cell: which.
        same: share of turns whose action stays the same.
        test: of the hypothesis that nothing changes beyond chance.
        words: turns whose words changed.
        kl, logprob: means over turns, in nats for each token; None where no answer could be compared.
        held: share of the prompts' tokens that are left.
        ages: share of turns that stay the same, by how many screenshots ago the needed one was shown where that is
            known, else by how many earlier ones the prompt has.
    """

    cell: Cell
    same: Estimate
    test: PairedTest
    words: int
    kl: Estimate | None
    logprob: Estimate | None
    held: Estimate
    ages: dict[int, Estimate]

    @property
    def loss(self) -> float:
        """Share of turns whose action changed."""
        return _rounded(1 - self.same.mean)

    @property
    def most_loss(self) -> float:
        """The end of the loss's interval, of both that can be told: over threads, and of turns as if none had any.

        Where nothing changed, drawing threads again can show no change either.
        """
        turns = self.same.num_samples
        return max(_rounded(1 - self.same.low), wilson(round(self.loss * turns), turns)[1])


@dataclass(frozen=True)
class Advice:
    """What follows.

    Attributes:
        outcomes: of all cells, in the order in which they were replayed.
        control: of the full cache against itself.
        knows_ages: whether ``ages`` are those of needed screenshots.
        chosen: the cell to serve with; None where no loss is within the bound.
        max_loss: the bound.
        against: of each other cell at the chosen budget, its paired test against the chosen one.
    """

    outcomes: tuple[Outcome, ...]
    control: Outcome | None
    knows_ages: bool
    chosen: Outcome | None
    max_loss: float
    against: dict[str, PairedTest]

    @property
    def is_sure(self) -> bool:
        """Whether the chosen cell's loss is within the bound up to the end of its interval; one task shows none."""
        chosen = self.chosen
        return chosen is not None and chosen.same.num_episodes > 1 and chosen.most_loss <= self.max_loss

    def flags(self, model: str, arguments: Sequence[str]) -> str:
        """The command to serve with."""
        cell = self.chosen.cell if self.chosen is not None else None
        policy = ["--kv-policy", "full"] if cell is None else ["--kv-policy", cell.policy, "--kv-budget"]
        budget = [] if cell is None else [f"{cell.budget:g}"]
        return shlex.join(["star-kv", "serve", "--model-path", model, *policy, *budget, *arguments])


def advise(folder: Path, cells: Sequence[Cell], max_loss: float, tasks: Mapping[str, str] | None = None) -> Advice:
    """Reads the cells of a folder.

    Args:
        folder: of the run, all of whose turns have been replayed.
        cells: those of all policies.
        max_loss: largest share of turns whose action may change.
        tasks: what each thread belongs to, whose threads are drawn together; None: each to itself.
    """
    rows = {cell: [row for row in read_turns(turn_file(folder, cell.name), CellTurn) if row.scored] for cell in cells}
    known = [row.ago is not None for found in rows.values() for row in found]
    knows_ages = bool(known) and all(known)
    again = next((found for cell, found in rows.items() if cell.name == AGAIN), [])
    tasks = tasks or {}
    outcomes = [_outcome(cell, found, knows_ages, again, tasks) for cell, found in rows.items()]
    rivals = tuple(one for one in outcomes if one.cell.name != AGAIN)
    chosen = choose(rivals, max_loss)
    against = {}
    for one in rivals:
        if chosen is not None and one is not chosen and one.cell.budget == chosen.cell.budget:
            against[one.cell.name] = _paired(rows[chosen.cell], rows[one.cell], tasks)
    control = next((one for one in outcomes if one.cell.name == AGAIN), None)
    return Advice(rivals, control, knows_ages, chosen, max_loss, against)


def choose(outcomes: Sequence[Outcome], max_loss: float) -> Outcome | None:
    """The smallest budget whose loss is within the bound, at which and above which the policy's losses are.

    Of several policies with that budget the one that loses least, and of equals the one nearest to the full cache.
    """
    within = [
        one
        for one in outcomes
        if all(
            other.loss <= max_loss
            for other in outcomes
            if other.cell.policy == one.cell.policy and other.cell.budget >= one.cell.budget
        )
    ]
    far = float("inf")
    return min(
        within,
        key=lambda one: (one.cell.budget, one.loss, far if one.kl is None else one.kl.mean),
        default=None,
    )


def _rounded(share: float) -> float:
    """A share of turns without what subtracting from 1 adds: 2 of 100 are 0.02."""
    return round(share, 9)


def _units(rows: Sequence[CellTurn], tasks: Mapping[str, str]) -> list[str]:
    """What intervals and tests draw: the task of each turn, where its thread has one."""
    return [tasks.get(row.thread, row.thread) for row in rows]


def _outcome(
    cell: Cell, rows: Sequence[CellTurn], knows_ages: bool, again: Sequence[CellTurn], tasks: Mapping[str, str]
) -> Outcome:
    same, threads = [float(row.same) for row in rows], _units(rows, tasks)
    compared = [row for row in rows if row.kl is not None and row.logprob is not None]
    by_age: dict[int, list[CellTurn]] = {}
    for row in rows:
        age = row.ago if knows_ages and row.ago is not None else max(0, row.screenshots - 1)
        by_age.setdefault(age, []).append(row)
    names = _units(compared, tasks)
    return Outcome(
        cell=cell,
        same=bootstrap(same, threads),
        # Beyond what the full cache changes by itself, where that was replayed.
        test=_paired(again, rows, tasks)
        if again and cell.name != AGAIN
        else paired_test([1.0] * len(same), same, threads),
        words=sum(not row.same_words for row in rows),
        kl=bootstrap([row.kl or 0.0 for row in compared], names) if compared else None,
        logprob=bootstrap([row.logprob or 0.0 for row in compared], names) if compared else None,
        held=bootstrap([row.held / row.prompt for row in rows], threads),
        ages={
            age: bootstrap([float(row.same) for row in found], _units(found, tasks))
            for age, found in sorted(by_age.items())
        },
    )


def _paired(reference: Sequence[CellTurn], other: Sequence[CellTurn], tasks: Mapping[str, str]) -> PairedTest:
    mine = {(row.thread, row.turn): row for row in other}
    pairs = [(row, mine[row.thread, row.turn]) for row in reference if (row.thread, row.turn) in mine]
    return paired_test(
        [float(one.same) for one, _ in pairs],
        [float(two.same) for _, two in pairs],
        _units([one for one, _ in pairs], tasks),
    )
