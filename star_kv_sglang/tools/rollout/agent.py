"""What a rollout needs of an agent: what it says to the model, and which actions it reads in a reply."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from random import Random
from typing import Final, Protocol

from star_kv_sglang.errors import StarKVError
from star_kv_sglang.tools.actions import Action
from star_kv_sglang.tools.rollout.environment import Environment, EnvironmentFault

Size = tuple[int, int]
"""Width and height in pixels."""

_PNG_SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"


class NoActionError(StarKVError, ValueError):
    """A reply holds no action that can be read."""


@dataclass(frozen=True, slots=True)
class View:
    """Where a branch stands when it acts.

    Attributes:
        environment: For agents that look at more than the screenshot.
        task: The suite's name of the task.
        goal: What the user wants, in words.
        turn: Counts from 0.
        size: Of the screenshot.
        random: The same in every run of this turn of this branch, and another in each branch.
    """

    environment: Environment
    task: str
    goal: str
    turn: int
    size: Size
    random: Random


class Agent(Protocol):
    """Prompts and action language of an agent. It holds nothing of a branch: what it does follows from the view.

    Attributes:
        name: Names the agent in a rollout's folder.
        max_tokens: Longest reply that it needs.
    """

    @property
    def name(self) -> str:
        """Names the agent in a rollout's folder."""

    @property
    def max_tokens(self) -> int:
        """Longest reply that it needs."""

    def system_text(self, goal: str, size: Size) -> str | None:
        """The system message, or None for none."""

    def user_texts(self, goal: str, turn: int) -> tuple[str, str]:
        """What the user says before and after a turn's screenshot; either may be empty."""

    async def actions(self, reply: str, view: View) -> tuple[Action, ...]:
        """What a reply says to do; at least one action.

        Raises:
            NoActionError: Nothing that can be read.
        """

    def history_text(self, reply: str, actions: tuple[Action, ...], size: Size) -> str:
        """What later turns see of a turn as the assistant's words."""


def png_size(png: bytes) -> Size:
    """Width and height of a PNG file.

    Raises:
        EnvironmentFault: It is none.
    """
    if not png.startswith(_PNG_SIGNATURE) or len(png) < 24:
        raise EnvironmentFault("the screenshot is no PNG file")
    width, height = struct.unpack(">II", png[16:24])
    return width, height
