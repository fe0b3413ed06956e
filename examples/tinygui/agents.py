"""Agents that share one engine: conversations of different lengths, played a turn of all of them at a time."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from star_kv_sglang.config import FULL, read_mapping
from star_kv_sglang.tools.eval.suite.prompts import PromptWriter
from star_kv_sglang.tools.eval.suite.served import Reply, Shown, SuiteEngine, device, engine_dtype, start_engine
from star_kv_sglang.tools.eval.suite.vision import SeenScreen, load_screens, see_all
from star_kv_sglang.tools.measuring import POLICY_CONFIG
from star_kv_sglang.tools.rollout.scoring import is_correct
from star_kv_sglang.tools.rollout.trajectory import Question, Trajectory
from tinygui.recall import recall_case
from tinygui.trajectories import build

LENGTHS = (6, 4, 3, 2)
"""Screens of the branches, in turn; the last one is new when the recalls are asked."""


@dataclass
class Branch:
    """One agent.

    Attributes:
        trajectory: What it sees and is asked.
        screens: The same behind the vision tower.
        replies: What it was told so far.
    """

    trajectory: Trajectory
    screens: list[SeenScreen]
    replies: list[Reply] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Names its conversation."""
        return f"b{self.trajectory.id}"


def make_trajectories(seed: int, count: int, num_recalls: int) -> list[Trajectory]:
    """Branches of different lengths whose last turn recalls widgets that have moved or gone."""
    made: list[Trajectory] = []
    while len(made) < count:
        length = LENGTHS[len(made) % len(LENGTHS)]
        try:
            case = recall_case(seed, length, num_recalls)
        except ValueError:  # too few widgets of this seed moved
            seed += 1
            continue
        asked = [*((question,) for question in case.history), case.recalls]
        first_step = int(case.steps[0].removeprefix("step"))
        made.append(build(seed, case.screens, asked, first_step))
        seed += 1
    return made


@contextmanager
def seen_by(model: Path, trajectories: Sequence[Trajectory]) -> Iterator[Path]:
    """A folder with what the model's vision tower makes of the screenshots, while the block runs."""
    with TemporaryDirectory() as name:
        for _ in see_all(model, trajectories, Path(name), dtype=engine_dtype(), device=device()):
            pass
        yield Path(name)


@contextmanager
def agents_on_engine(
    model: Path, trajectories: Sequence[Trajectory], seen: Path, **flags: Any
) -> Iterator[tuple[SuiteEngine, PromptWriter, list[Branch]]]:
    """An engine with these flags, and the agents at their beginning, while the block runs."""
    if flags.get("kv_policy", FULL) != FULL:
        config = {**POLICY_CONFIG, **read_mapping(flags.get("kv_policy_config", "{}"))}
        flags["kv_policy_config"] = json.dumps(config)
    engine = SuiteEngine(start_engine(model, **flags), trajectories[0].turns[0].image_png)
    try:
        yield engine, PromptWriter(model), [Branch(one, load_screens(seen, one.id)) for one in trajectories]
    finally:
        engine.close()


def tell(row: Mapping[str, object], out: Path | None) -> None:
    """Print a result, and append it to a file of JSON lines."""
    line = json.dumps({"device": device(), **row})
    print(line, flush=True)
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        with out.open("a", encoding="utf-8") as file:
            file.write(line + "\n")


async def play_histories(
    engine: SuiteEngine, writer: PromptWriter, branches: Sequence[Branch], *, in_flight: int = 64
) -> None:
    """All turns but the last, a turn of all branches at a time, ``in_flight`` requests at most at the same moment."""
    free = asyncio.Semaphore(in_flight)

    async def turn(branch: Branch, index: int) -> None:
        question = branch.trajectory.turns[index].questions[0]
        async with free:
            branch.replies.append(await _ask(engine, writer, branch, question, f"{index}", share=False))

    longest = max(len(branch.trajectory.turns) for branch in branches) - 1
    for step in range(longest):
        # Short branches begin late, so that all end at the same moment.
        at = [(b, step - (longest - len(b.trajectory.turns) + 1)) for b in branches]
        await asyncio.gather(*(turn(branch, index) for branch, index in at if index >= 0))


async def recall(engine: SuiteEngine, writer: PromptWriter, branches: Sequence[Branch]) -> list[bool]:
    """All questions of the last turns: whether each was answered right."""

    async def one(branch: Branch, number: int, question: Question) -> bool:
        reply = await _ask(engine, writer, branch, question, f"r{number}", share=True)
        return is_correct(question, reply.text)

    asked = [(b, n, q) for b in branches for n, q in enumerate(b.trajectory.turns[-1].questions)]
    return list(await asyncio.gather(*(one(*each) for each in asked)))


async def _ask(
    engine: SuiteEngine, writer: PromptWriter, branch: Branch, question: Question, place: str, *, share: bool
) -> Reply:
    ids = writer.ids(branch.trajectory, [reply.text for reply in branch.replies], question.text)
    shown = [Shown(s, branch.name, i) for i, s in enumerate(branch.screens[: len(branch.replies) + 1])]
    custom = {"kv_share": True} if share else {}
    return await engine.ask(ids, shown, f"{branch.name}@{place}", custom)
