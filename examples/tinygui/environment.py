"""The generated worlds as an environment of rollouts: at each turn, click the widget that the user names.

From ``examples/``: ``star-kv rollout --env tinygui.environment:worlds --agent small --temperature 0.8``. The next
screen follows from the seed and from where was clicked, as in an application: branches that click elsewhere see others.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from random import Random

from star_kv_sglang.tools.rollout import Action, ActionKind, ActionRefusedError, Score
from star_kv_sglang.tools.rollout.scoring import CELL, point_in_box
from star_kv_sglang.tools.rollout.trajectory import Question
from tinygui.language import click
from tinygui.world import Shown
from tinygui.worlds import WORLDS, World

NUM_TURNS = 6
"""Screens of an episode: as many as the shipped models were trained on."""


class WorldEnvironment:
    """An episode of `NUM_TURNS` screens, whose reward is the share of them on which the right widget was clicked."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._path = ""
        self._turn = 0
        self._right = 0
        self._screen: Shown

    async def reset(self, seed: int) -> str:
        self._path, self._turn, self._right = f"tinygui environment {self._world.name} {seed}", 0, 0
        self._screen = self._world.first_screen(Random(self._path))
        return ""

    async def instruction(self) -> str:
        return self._question.text

    async def screenshot(self) -> bytes:
        return self._world.png(self._screen)

    async def step(self, action: Action) -> None:
        if action.kind is not ActionKind.CLICK or action.point is None:
            raise ActionRefusedError(f"these screens take clicks, not {action.kind.value}")
        x, y = int(action.point[0] * self._screen.width), int(action.point[1] * self._screen.height)
        self._right += point_in_box((x, y), self._question.box)
        self._turn += 1
        self._path += f" x{x // CELL} y{y // CELL}"
        self._screen = self._world.next_screen(Random(self._path), self._screen)

    async def score(self) -> Score:
        return Score(self._right / NUM_TURNS, self._turn >= NUM_TURNS)

    @property
    def _question(self) -> Question:
        return click(Random(f"{self._path} question").choice(self._screen.widgets))


class WorldSuite:
    """A task for each of the worlds."""

    name = "tinygui"
    tasks = tuple(WORLDS)

    @asynccontextmanager
    async def open(self, task: str) -> AsyncIterator[WorldEnvironment]:
        yield WorldEnvironment(WORLDS[task])


@asynccontextmanager
async def worlds() -> AsyncIterator[WorldSuite]:
    """The suite, as ``star-kv rollout --env`` takes it."""
    yield WorldSuite()
