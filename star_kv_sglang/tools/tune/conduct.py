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
    for policy in plan.policies:
        needs_full = _missing(replay.folder, Cell(policy, 1.0, FULL), plan.threads) > 0
        cells = [cell for cell in plan.cells(policy) if _missing(replay.folder, cell, plan.threads)]
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
            watcher.cell(cell.name, plan.num_turns, _missing(replay.folder, cell, plan.threads))
            watched = replace(replay, on_turn=lambda same, name=cell.name: watcher.turn(name, same))  # type: ignore[misc]
            if cell.name == FULL:
                await watched.full(asker, plan.threads)
                await asker.flush()
            else:
                await watched.cell(asker, cell, plan.threads, traces)


def _missing(folder: Path, cell: Cell, threads: Sequence[Thread]) -> int:
    """Turns that a cell lacks."""
    path = turn_file(folder, cell.name)
    rows = (TurnFile(path, FullTurn) if cell.name == FULL else TurnFile(path, CellTurn)).rows
    return sum((thread.name, turn) not in rows for thread in threads for turn in range(len(thread.turns)))
