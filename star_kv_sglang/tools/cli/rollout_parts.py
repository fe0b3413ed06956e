"""From the words of ``--env`` and ``--agent`` to a suite and an agent."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, cast

from star_kv_sglang.tools.agents.family import FamilyAgent
from star_kv_sglang.tools.agents.small import SmallAgent
from star_kv_sglang.tools.browser.extra import require_browser_libraries
from star_kv_sglang.tools.eval.families import FAMILIES
from star_kv_sglang.tools.rollout import Agent, RolloutError, Suite

MINIWOB = "miniwob"
SCRIPTED = "scripted"
SMALL = "small"


def open_suite(name: str, chromium: Path | None) -> AbstractAsyncContextManager[Suite]:
    """The suite of ``--env``: ``miniwob``, or ``package.module:function`` of one's own, a function without arguments
    that returns an asynchronous context manager of a suite.

    Raises:
        RolloutError: There is no such suite, or what it needs is not installed.
    """
    if name == MINIWOB:
        require_browser_libraries()
        from star_kv_sglang.tools.browser.miniwob import miniwob_suite

        return miniwob_suite(chromium)
    make = _import(name, "--env", MINIWOB)
    return cast(AbstractAsyncContextManager[Suite], make())


def find_agent(name: str, detours: float) -> Agent:
    """The agent of ``--agent``: ``scripted``, ``small``, a model family, or ``package.module:function`` of one's own.

    Raises:
        RolloutError: There is no such agent, or what it needs is not installed.
    """
    if name == SCRIPTED:
        require_browser_libraries()
        from star_kv_sglang.tools.browser.scripted import ScriptedAgent

        return ScriptedAgent(detours)
    if name == SMALL:
        return SmallAgent()
    if name in FAMILIES:
        return FamilyAgent(FAMILIES[name])
    return cast(Agent, _import(name, "--agent", ", ".join([SCRIPTED, SMALL, *sorted(FAMILIES)]))())


def choose_tasks(words: str, suite: Suite, agent: Agent) -> tuple[str, ...]:
    """The tasks of ``--tasks``: names with commas between them, or ``all``: all that the agent knows of the suite.

    Raises:
        RolloutError: It knows none of them.
    """
    if words != "all":
        return tuple(word.strip() for word in words.split(",") if word.strip())
    known: Sequence[str] = getattr(agent, "tasks", suite.tasks)
    chosen = tuple(task for task in known if task in suite.tasks)
    if not chosen:
        raise RolloutError(f"the agent {agent.name!r} plays none of the tasks of {suite.name}; name --agent")
    return chosen


def _import(name: str, option: str, known: str) -> Any:
    module, colon, attribute = name.partition(":")
    if not colon:
        raise RolloutError(f"{option} {name!r} is not known: choose {known}, or name package.module:function")
    # As `python -m` does: what lies in the folder where the command is called.
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise RolloutError(f"{option} {name!r} cannot be imported: {error}") from error
