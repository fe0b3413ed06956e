"""All cells of a run: a server for each policy, which takes every budget, one after the other."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from star_kv_sglang.tools.tune.asking import Asker
from star_kv_sglang.tools.tune.errors import ReplayError
from star_kv_sglang.tools.tune.recordings import Thread
from star_kv_sglang.tools.tune.records import AGAIN, FULL, SERVERS, CellTurn, FullTurn, TurnFile, turn_file
from star_kv_sglang.tools.tune.replay import Cell, Replay

_SERVER_BUDGET: Final = "0.5"
"""A server has to have one; each request says its own."""

Serve = Callable[[Sequence[str], Path], AbstractContextManager[str]]
"""Runs a server with these flags and this log while its block runs; its URL."""


class Watcher:
    """Is told how a run goes on; the command line draws a progress bar."""

    def server(self, policy: str, log: Path) -> None:
        """A server starts."""

    def cell(self, name: str, total: int, remaining: int) -> None:
        """A cell begins: so many turns, of which so many are still to be replayed."""

    def turn(self, name: str, same: bool) -> None:
        """A turn of a cell is done."""

    def refused(self, thread: str, reason: str) -> None:
        """The server refuses a turn of a thread, which is left out."""


@dataclass(frozen=True)
class Plan:
    """What is replayed.

    Attributes:
        model: for ``star-kv serve``.
        threads: what was recorded.
        policies: one server each; the first one's gives the full cache's answers, with a budget of 1.
        budgets: for each policy.
        control: replay the full cache once more, to see what changes by itself.
        arguments: further flags of the servers.
        timeout_s: seconds that a request may take.
    """

    model: str
    threads: tuple[Thread, ...]
    policies: tuple[str, ...]
    budgets: tuple[float, ...]
    control: bool
    arguments: tuple[str, ...]
    timeout_s: float

    @property
    def num_turns(self) -> int:
        """Of all threads."""
        return sum(len(thread.turns) for thread in self.threads)

    def cells(self, policy: str) -> list[Cell]:
        """A policy's cells; the first policy's begin with the control."""
        control = [Cell(policy, 1.0, AGAIN)] if self.control and policy == self.policies[0] else []
        return [*control, *(Cell.of(policy, budget) for budget in self.budgets)]

    def flags(self, policy: str, traces: Path) -> list[str]:
        """Flags of a policy's server."""
        config = json.dumps({"trace_dir": str(traces.resolve())})
        ours = ["--model-path", self.model, "--kv-policy", policy, "--kv-budget", _SERVER_BUDGET]
        return [*ours, "--kv-policy-config", config, *self.arguments]


def conduct(plan: Plan, replay: Replay, serve: Serve, watcher: Watcher) -> None:
    """Replays what the folder does not hold yet.

    Raises:
        ReplayError: a server is gone or refuses a turn; what is done is kept.
        RolloutError: a server does not start; the message ends with its last words.
    """
    replay = replace(replay, on_refused=watcher.refused)
    for policy in plan.policies:
        # What is refused once is refused by all: the first policy's server is asked.
        needs_full = policy == plan.policies[0] and _missing(replay.folder, FULL, plan.threads) > 0
        known = plan.threads if needs_full else answered(replay.folder, plan.threads)
        cells = [cell for cell in plan.cells(policy) if _missing(replay.folder, cell.name, known)]
        if not cells and not needs_full:
            continue
        log = replay.folder / SERVERS / f"{policy}.log"
        traces = replay.folder / SERVERS / f"{policy}.traces"
        traces.mkdir(parents=True, exist_ok=True)
        for file in traces.glob("*.npz"):  # of a run that was killed
            file.unlink()
        watcher.server(policy, log)
        with serve(plan.flags(policy, traces), log) as url:
            full = [Cell(policy, 1.0, FULL)] if needs_full else []
            asyncio.run(_replay(plan, replay, [*full, *cells], url, traces, watcher))


async def _replay(plan: Plan, replay: Replay, cells: Sequence[Cell], url: str, traces: Path, watcher: Watcher) -> None:
    async with Asker(url, plan.timeout_s) as asker:
        for cell in cells:
            known = plan.threads if cell.name == FULL else answered(replay.folder, plan.threads)
            total = sum(len(thread.turns) for thread in known)
            watcher.cell(cell.name, total, _missing(replay.folder, cell.name, known))
            watched = replace(replay, on_turn=lambda same, name=cell.name: watcher.turn(name, same))  # type: ignore[misc]
            if cell.name == FULL:
                await watched.full(asker, plan.threads)
                await asker.flush()
                if not answered(replay.folder, plan.threads):
                    raise ReplayError("the server refuses a turn of every thread; the lines above say why")
            else:
                await watched.cell(asker, cell, plan.threads, traces)


def answered(folder: Path, threads: Sequence[Thread]) -> tuple[Thread, ...]:
    """The threads all of whose turns the full cache has answered."""
    file = TurnFile(turn_file(folder, FULL), FullTurn)
    return tuple(thread for thread in threads if not file.lacks(thread.name, len(thread.turns)))


def _missing(folder: Path, cell: str, threads: Sequence[Thread]) -> int:
    """Turns that a cell lacks."""
    path = turn_file(folder, cell)
    rows = (TurnFile(path, FullTurn) if cell == FULL else TurnFile(path, CellTurn)).rows
    return sum((thread.name, turn) not in rows for thread in threads for turn in range(len(thread.turns)))
