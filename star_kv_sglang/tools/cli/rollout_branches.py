"""``star-kv rollout --env``: branches of an agent in an environment, on a server."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console

from star_kv_sglang.tools.chat import ChatClient
from star_kv_sglang.tools.cli.rollout_display import (
    ProgressDisplay,
    pool_table,
    pool_use,
    task_markdown,
    task_table,
    time_table,
)
from star_kv_sglang.tools.cli.rollout_parts import MINIWOB, choose_tasks, find_agent, open_suite
from star_kv_sglang.tools.rollout import (
    BranchResult,
    End,
    RolloutSettings,
    TreeSettings,
    best_of,
    outcomes,
    run_branches,
    time_split,
    tree_search,
)
from star_kv_sglang.tools.rollout.folder import SETTINGS_FILE
from star_kv_sglang.tools.rollout.pool import PoolSample, sampling

_SAMPLE_S = 1.0
_RETRIES = 3
"""Of a request that the server is too busy for; it says so while it ends and while it starts, too."""
_AGAIN = "run the same command again: it goes on where it stopped"


@dataclass(frozen=True, slots=True)
class BranchesCommand:
    """What the command line says.

    Attributes:
        env, agent, tasks: Words of ``--env``, ``--agent`` and ``--tasks``.
        detours: Of the scripted agent.
        chromium: The browser's program, or None.
        base_url, api_key, timeout_s: Of the server.
        tree: Of the tree search, or None for branches side by side.
        out: The folder.
        settings: Makes the settings from the names of the tasks.
    """

    env: str
    agent: str
    tasks: str
    detours: float
    chromium: Path | None
    base_url: str
    api_key: str | None
    timeout_s: float
    tree: TreeSettings | None
    out: Path
    settings: Callable[[tuple[str, ...]], RolloutSettings]


def run_command(command: BranchesCommand, console: Console) -> list[BranchResult]:
    """Run the branches, print the tables, and write ``summary.json`` and ``tasks.md``.

    Raises:
        StarKVError: As the library does; one line.
    """
    started, cpu = time.monotonic(), time.process_time()
    results, samples = asyncio.run(_run(command, console))
    cpu_s = time.process_time() - cpu
    found, split = outcomes(results), time_split(results)
    console.print(task_table(found))
    console.print(time_table(split, cpu_s, "browser" if command.env == MINIWOB else "environment"))
    pool = pool_use(samples)
    if any(value is not None for value in pool.values()):
        console.print(pool_table(pool))
    if command.tree is not None:
        for task, best in best_of(results).items():
            console.print(f"best of {task}: branch {best.branch.name}, reward {best.end.reward:.2f}")
    summary = {
        "tasks": [asdict(one) for one in found],
        "time_split": asdict(split),
        "cpu_s": cpu_s,
        "wall_s": time.monotonic() - started,
        "processors": len(os.sched_getaffinity(0)),
        "pool": pool,
        "server_kv": json.loads((command.out / SETTINGS_FILE).read_text(encoding="utf-8"))["server_kv"],
        "best": {task: best.branch.name for task, best in best_of(results).items()},
    }
    (command.out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    (command.out / "tasks.md").write_text(task_markdown(found), encoding="utf-8")
    console.print(f"Written to {command.out}: traces, screenshots, summary.json, tasks.md", soft_wrap=True)
    failed = sum(result.end.end is End.FAILED for result in results)
    if failed:
        console.print(f"{failed} of {len(results)} branches failed; {_AGAIN}", soft_wrap=True)
    return results


async def _run(command: BranchesCommand, console: Console) -> tuple[list[BranchResult], list[PoolSample]]:
    agent = find_agent(command.agent, command.detours)
    async with (
        open_suite(command.env, command.chromium) as suite,
        ChatClient(
            command.base_url, api_key=command.api_key, timeout_s=command.timeout_s, retries=_RETRIES, when_gone=_AGAIN
        ) as client,
    ):
        settings = command.settings(choose_tasks(command.tasks, suite, agent))
        num_branches = None if command.tree else len(settings.tasks) * settings.branches
        async with sampling(client, interval_s=_SAMPLE_S, through_restarts=True) as samples:
            with ProgressDisplay(console, num_branches, settings.max_turns) as display:
                if command.tree is None:
                    results = await run_branches(client, suite, agent, settings, command.out, display)
                else:
                    results = await tree_search(client, suite, agent, settings, command.tree, command.out, display)
        return results, samples
