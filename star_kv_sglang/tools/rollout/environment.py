"""What a rollout needs of an environment: a world that an agent sees as screenshots and changes by actions."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from star_kv_sglang.errors import StarKVError
from star_kv_sglang.tools.actions import Action


class EnvironmentFault(StarKVError, RuntimeError):
    """An environment broke, hangs, or does not repeat itself. The branch is tried again in a new one."""


class ActionRefusedError(StarKVError, ValueError):
    """An environment cannot do an action, and nothing has changed. The agent is told, and goes on."""


@dataclass(frozen=True, slots=True)
class Score:
    """How an episode stands.

    Attributes:
        reward: So far; 0 where nothing has been decided yet.
        done: Whether the episode is over.
    """

    reward: float
    done: bool


@runtime_checkable
class Environment(Protocol):
    """One episode of one task, in the hands of one branch.

    The same seed and the same actions must lead to the same screenshots: a branch that is resumed, tried again after a
    fault, or forked, is brought to its place by its actions, and every screenshot on the way is compared.
    """

    async def reset(self, seed: int) -> str:
        """Begin the episode of a seed, and return what the user wants, in words."""

    async def screenshot(self) -> bytes:
        """The screen as a PNG file. It does not change while nobody acts."""

    async def step(self, action: Action) -> None:
        """Do one action.

        Raises:
            ActionRefusedError: It cannot be done here; nothing has changed.
        """

    async def score(self) -> Score:
        """How the episode stands."""


@runtime_checkable
class InstructingEnvironment(Environment, Protocol):
    """An environment whose user says something at every turn, and not only at the beginning."""

    async def instruction(self) -> str:
        """What the user says after the screenshot in view."""


class Suite(Protocol):
    """Tasks, and an environment for each branch that plays one of them.

    Attributes:
        name: Names the suite in a rollout's folder.
        tasks: Names of all its tasks.
    """

    @property
    def name(self) -> str:
        """Names the suite in a rollout's folder."""

    @property
    def tasks(self) -> Sequence[str]:
        """Names of all its tasks."""

    def open(self, task: str) -> AbstractAsyncContextManager[Environment]:
        """An environment for one branch, which ends with the block. Several are open at the same time."""
