"""Runs all branches of all tasks, some at a time, and goes on where an earlier run of the same was stopped."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

from star_kv_sglang.errors import StarKVError
from star_kv_sglang.tools.chat import ChatClient, kv_settings_of
from star_kv_sglang.tools.rollout.agent import Agent
from star_kv_sglang.tools.rollout.asking import Model
from star_kv_sglang.tools.rollout.environment import Suite
from star_kv_sglang.tools.rollout.errors import RolloutError, first_error
from star_kv_sglang.tools.rollout.folder import RolloutFolder
from star_kv_sglang.tools.rollout.player import Player, Watcher
from star_kv_sglang.tools.rollout.settings import RolloutSettings
from star_kv_sglang.tools.rollout.trace import Branch, BranchResult


async def run_branches(
    client: ChatClient,
    suite: Suite,
    agent: Agent,
    settings: RolloutSettings,
    out: Path,
    watcher: Watcher | None = None,
) -> list[BranchResult]:
    """Play every branch of every task to its end.

    Args:
        client: Of any OpenAI-compatible server; one with a KV policy is told what branches share.
        suite: Where tasks come from.
        agent: Who plays.
        settings: What is run.
        out: A folder for traces and screenshots. What it holds of the same rollout is not played again.
        watcher: Is told how it goes on.

    Returns:
        The results, by task in the order of the settings, and by branch. A branch that failed has an end that says
        so; it ends none of the others.

    Raises:
        RolloutError: The folder is in use, or holds another rollout; or the suite has no such task.
        ServerGoneError: The server cannot be reached; ``out`` keeps what was played.
    """
    branches = [
        Branch(task, str(number), settings.seed) for task in settings.tasks for number in range(settings.branches)
    ]
    async with opened_player(client, suite, agent, settings, out, watcher) as player:
        return await play_all(
            settings.concurrency, [partial(player.play, branch, settings.max_turns) for branch in branches]
        )


@asynccontextmanager
async def opened_player(
    client: ChatClient,
    suite: Suite,
    agent: Agent,
    settings: RolloutSettings,
    out: Path,
    watcher: Watcher | None,
    more: dict[str, Any] | None = None,
) -> AsyncIterator[Player]:
    """A player that writes to a folder which nobody else writes to; ``more`` is what else must be the same there."""
    unknown = [task for task in settings.tasks if task not in suite.tasks]
    if unknown:
        raise RolloutError(f"{suite.name} has no task {', '.join(unknown)}; its tasks are {', '.join(suite.tasks)}")
    max_tokens = agent.max_tokens if settings.max_tokens is None else settings.max_tokens
    told = watcher or Watcher()
    model = await Model.of(client, settings, max_tokens, told.wait)
    described = {
        **{"suite": suite.name, "agent": agent.name, **settings.describe(), **(more or {})},
        "model": settings.model or await client.model(),
        "max_tokens": max_tokens,
        "server_kv": _policy_settings(await client.server_info()),
    }
    with RolloutFolder(out, described) as folder:
        yield Player(
            suite=suite,
            agent=agent,
            model=model,
            settings=settings,
            folder=folder,
            watcher=told,
            shares_first_turn=settings.branches > 1 or bool(more),
        )


def _policy_settings(server_info: dict[str, Any] | None) -> dict[str, Any]:
    """What a server does to its KV cache; that its tree is shown besides changes no answer."""
    return {name: value for name, value in kv_settings_of(server_info).items() if name != "kv_introspection"}


async def play_all(concurrency: int, plays: Sequence[Callable[[], Awaitable[BranchResult]]]) -> list[BranchResult]:
    """Await all, so many at a time; the first error of the server or the folder ends them all."""
    free = asyncio.Semaphore(concurrency)

    async def one(play: Callable[[], Awaitable[BranchResult]]) -> BranchResult:
        async with free:
            return await play()

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(play)) for play in plays]
    except* StarKVError as errors:
        raise first_error(errors) from None
    return [task.result() for task in tasks]
