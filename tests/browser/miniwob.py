"""Rollouts in the real browser against a server of a few lines."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

from star_kv_sglang.tools.browser.miniwob import MiniWobSuite, miniwob_suite
from star_kv_sglang.tools.browser.scripted import ScriptedAgent
from star_kv_sglang.tools.rollout import BranchResult, ChatClient, RolloutSettings, Watcher, run_branches

Meanwhile = Callable[[MiniWobSuite], Awaitable[None]]


def play(
    url: str,
    out: Path,
    settings: RolloutSettings,
    *,
    agent: ScriptedAgent | None = None,
    watcher: Watcher | None = None,
    meanwhile: Meanwhile | None = None,
    change: Callable[[MiniWobSuite], MiniWobSuite] = lambda suite: suite,
) -> list[BranchResult]:
    """Runs branches.

    Args:
        url: Of the server.
        out, settings, agent, watcher: Of the rollout.
        meanwhile: Runs at the same time, with the suite in its hands.
        change: Makes another suite of the real one.
    """

    async def go() -> list[BranchResult]:
        async with miniwob_suite() as suite, ChatClient(url, timeout_s=10) as client, asyncio.TaskGroup() as group:
            if meanwhile is not None:
                group.create_task(_awaited(meanwhile(suite)))
            return await run_branches(
                client, change(suite), agent or ScriptedAgent(detours=0.0), settings, out, watcher
            )

    return asyncio.run(go())


async def _awaited(what: Awaitable[None]) -> None:
    await what
