"""One engine's part of the suite in its own process: ``python -m star_kv_sglang.tools.eval.suite.worker SPEC.json``.

Progress goes to stdout, one JSON line for each trajectory; what is done is in the cells' files.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from star_kv_sglang.tools.eval.runner import Protocol
from star_kv_sglang.tools.eval.suite.ages import kept_by_age
from star_kv_sglang.tools.eval.suite.play import PLAY, Player
from star_kv_sglang.tools.eval.suite.prompts import PromptWriter
from star_kv_sglang.tools.eval.suite.questions import load_questions
from star_kv_sglang.tools.eval.suite.records import AGES, ENGINES, VISION, CellFile
from star_kv_sglang.tools.eval.suite.served import SuiteEngine, start_engine
from star_kv_sglang.tools.eval.suite.variants import Cell, Variant, engine_arguments
from star_kv_sglang.tools.eval.suite.vision import SeenScreen, file_of, load_screens
from star_kv_sglang.tools.rollout.trajectory import Trajectory

_POLL_S = 0.2


@dataclass(frozen=True)
class Step:
    """Some trajectories in one cell."""

    cell: Cell
    trajectories: tuple[int, ...]


@dataclass(frozen=True)
class Spec:
    """What a worker does.

    Attributes:
        model: the checkpoint.
        questions: the trajectory file.
        folder: the suite's.
        variant: the engine's policy.
        steps: what is asked, in order.
        deadline: no trajectory is begun after this time (seconds since the epoch); None for no limit.
        at_a_time: trajectories in play.
        traced: trajectories of which the policy writes down what it keeps.
    """

    model: str
    questions: str
    folder: str
    variant: Variant
    steps: tuple[Step, ...]
    deadline: float | None
    at_a_time: int
    traced: frozenset[int]

    def to_json(self) -> str:
        """The spec as text."""
        row = asdict(self)
        row["traced"] = sorted(self.traced)
        return json.dumps(row)

    @classmethod
    def from_json(cls, text: str) -> Spec:
        """The spec that `to_json` wrote."""
        row = json.loads(text)
        row["variant"] = Variant(**row["variant"])
        row["steps"] = tuple(
            Step(
                Cell(step["cell"]["variant"], step["cell"]["budget"], Protocol(step["cell"]["protocol"])),
                tuple(step["trajectories"]),
            )
            for step in row["steps"]
        )
        row["traced"] = frozenset(row["traced"])
        return cls(**row)


class Worker:
    """Plays the steps on one engine.

    Args:
        spec: what to do.

    Attributes:
        spec: likewise.
        engine: the engine.
    """

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        self._folder = Path(spec.folder)
        self._trace = self._folder / ENGINES / f"{spec.variant.name}.trace"
        self._trajectories = {one.id: one for one in load_questions(Path(spec.questions))}
        self._writer = PromptWriter(Path(spec.model))
        started = time.monotonic()
        shutil.rmtree(self._trace, ignore_errors=True)
        engine = start_engine(Path(spec.model), **engine_arguments(spec.variant, str(self._trace)))
        sample = next(iter(self._trajectories.values())).turns[0].image_png
        self.engine = SuiteEngine(engine, sample)
        self._start_s = time.monotonic() - started

    def play_all(self) -> int:
        """Plays everything; returns the number of trajectories."""
        played = 0
        for step in self.spec.steps:
            played += self.engine.run(self._play(step))
            self.engine.flush()
            self._read_trace(step.cell)
        return played

    def run(self) -> None:
        """Plays everything, writes down how it went, and ends the engine."""
        started = time.monotonic()
        try:
            played = self.play_all()
            counters = dict(self.engine.counters())
        finally:
            self.engine.close()
        row = {"start_s": self._start_s, "run_s": time.monotonic() - started, "trajectories": played, **counters}
        path = self._folder / ENGINES / f"{self.spec.variant.name}.json"
        path.write_text(json.dumps(row, indent=1) + "\n", encoding="utf-8")

    async def _play(self, step: Step) -> int:
        """Plays a step's trajectories, some at a time; returns how many."""
        cell = CellFile(self._folder, step.cell)
        left = iter([number for number in step.trajectories if number not in cell.done])
        played = 0

        async def play_some() -> None:
            nonlocal played
            for number in left:
                if self.spec.deadline is not None and time.time() > self.spec.deadline:
                    return
                trajectory = self._trajectories[number]
                player = Player(
                    self.engine,
                    self._writer,
                    trajectory,
                    await self._screens(trajectory),
                    step.cell.budget,
                    f"{step.cell.name}~{number}",
                    traced=number in self.spec.traced,
                )
                answers = await PLAY[step.cell.protocol.value](player)
                cell.add(number, answers)
                played += 1
                row = {"cell": step.cell.name, "right": sum(a.right for a in answers), "asked": len(answers)}
                sys.stdout.write(json.dumps(row) + "\n")
                sys.stdout.flush()

        await asyncio.gather(*(play_some() for _ in range(self.spec.at_a_time)))
        return played

    async def _screens(self, trajectory: Trajectory) -> Sequence[SeenScreen]:
        """A trajectory's screenshots, as soon as the parent has made them."""
        folder = self._folder / VISION
        while not file_of(folder, trajectory.id).exists():
            await asyncio.sleep(_POLL_S)
        return load_screens(folder, trajectory.id)

    def _read_trace(self, cell: Cell) -> None:
        kept = kept_by_age(self._trace) if self._trace.is_dir() else {}
        if kept:
            path = self._folder / AGES / f"{cell.name}.json"
            path.write_text(json.dumps({str(age): counts for age, counts in kept.items()}) + "\n", encoding="utf-8")
            for file in self._trace.glob("*.npz"):
                file.unlink()


def main(arguments: Sequence[str] | None = None) -> Any:
    """Runs the spec whose path is the only argument."""
    (path,) = sys.argv[1:] if arguments is None else arguments
    Worker(Spec.from_json(Path(path).read_text(encoding="utf-8"))).run()


if __name__ == "__main__":
    main()
