"""A world of a few lines for rollouts: a number that clicks change, shown as a shade of grey."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from star_kv_sglang.tools.rollout import (
    Action,
    ActionKind,
    ActionRefusedError,
    BranchResult,
    ChatClient,
    Environment,
    NoActionError,
    RolloutSettings,
    Score,
    View,
    Watcher,
    run_branches,
)
from tests.rollout.cases import png

GOAL_NUMBER = 5


class Number:
    """Begins at the seed; a click on the right half adds one, on the left half two. It is over at `GOAL_NUMBER`."""

    def __init__(self) -> None:
        self.number = 0

    async def reset(self, seed: int) -> str:
        self.number = seed
        return f"reach {GOAL_NUMBER}"

    async def screenshot(self) -> bytes:
        return png(self.number)

    async def step(self, action: Action) -> None:
        if action.kind is not ActionKind.CLICK or action.point is None:
            raise ActionRefusedError(f"the number takes clicks, not {action.kind.value}")
        self.number += 1 if action.point[0] >= 0.5 else 2

    async def score(self) -> Score:
        done = self.number >= GOAL_NUMBER
        return Score(1.0 if self.number == GOAL_NUMBER else -1.0 if done else 0.0, done)


@dataclass
class Numbers:
    """A suite of one kind of task; ``make`` makes another environment for each try."""

    make: Callable[[], Environment] = Number
    tasks: Sequence[str] = ("up", "down")
    name: str = "numbers"
    opened: list[str] = field(default_factory=list)

    @asynccontextmanager
    async def open(self, task: str) -> AsyncIterator[Environment]:
        self.opened.append(task)
        yield self.make()


@asynccontextmanager
async def numbers() -> AsyncIterator[Numbers]:
    """The suite, as ``--env`` takes one."""
    yield Numbers()


class Clicker:
    """Clicks where the reply says: ``right``, ``left``, or ``any``, which is another one in each branch."""

    name = "clicker"
    max_tokens = 8

    def system_text(self, goal: str, size: tuple[int, int]) -> str | None:
        return f"The screen is {size[0]} x {size[1]}."

    def user_texts(self, goal: str, turn: int) -> tuple[str, str]:
        return (goal, "") if turn == 0 else ("", "")

    async def actions(self, reply: str, view: View) -> tuple[Action, ...]:
        places = {"right": 0.9, "left": 0.1, "any": view.random.choice((0.1, 0.9)), "outside": 1.2}
        if reply == "done":
            return (Action(ActionKind.TERMINATE, status="success"),)
        if reply not in places:
            raise NoActionError(f"{reply!r} is no side")
        return (Action(ActionKind.CLICK, point=(places[reply], 0.5)),)

    def history_text(self, reply: str, actions: tuple[Action, ...], size: tuple[int, int]) -> str:
        return reply


class Faults(Watcher):
    """Keeps the faults that a rollout tells of."""

    def __init__(self) -> None:
        self.faults: list[tuple[str, str]] = []

    def fault(self, branch: object, text: str) -> None:
        self.faults.append((str(branch), text))


def play(
    url: str,
    out: Path,
    suite: Numbers | None = None,
    *,
    agent: Clicker | None = None,
    watcher: Watcher | None = None,
    settings: RolloutSettings | None = None,
    client_retries: int = 0,
    **changed: object,
) -> list[BranchResult]:
    """Runs branches of the task ``up`` against a server, with little patience."""
    plain = {"tasks": ("up",), "branches": 2, "environment_timeout_s": 5.0, "patience_s": 0.3}
    chosen = settings or partial(RolloutSettings, **{**plain, **changed})()  # type: ignore[arg-type]

    async def go() -> list[BranchResult]:
        async with ChatClient(url, timeout_s=5, retries=client_retries) as client:
            return await run_branches(client, suite or Numbers(), agent or Clicker(), chosen, out, watcher)

    return asyncio.run(go())
