"""An agent that asks the served model at every turn, and then acts by script, whatever the model says.

It is for measuring and for trying out: the server sees the prompts of a real agent, screenshots and all, and branches
get through their tasks with any model, the small one of this project's examples included. What it does is no merit of
the model. Detours make its branches differ: a turn in which the pointer is moved somewhere, which changes no page.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from star_kv_sglang.tools.actions import Action, ActionKind
from star_kv_sglang.tools.browser.miniwob import MiniWobEnvironment
from star_kv_sglang.tools.browser.scripts import SCRIPTS
from star_kv_sglang.tools.browser.scripts.page import ScriptPage
from star_kv_sglang.tools.rollout.agent import NoActionError, Size, View
from star_kv_sglang.tools.rollout.scoring import CELL


@dataclass(frozen=True, slots=True)
class ScriptedAgent:
    """The agent.

    Attributes:
        detours: Probability of a turn that only moves the pointer.
        max_tokens: Of the model's reply, which only the trace keeps.
    """

    tasks: ClassVar[tuple[str, ...]] = tuple(SCRIPTS)

    detours: float = 0.3
    max_tokens: int = 8

    @property
    def name(self) -> str:
        """Names the agent in a rollout's folder."""
        return f"scripted, detours {self.detours:g}"

    def system_text(self, goal: str, size: Size) -> str | None:
        return None

    def user_texts(self, goal: str, turn: int) -> tuple[str, str]:
        return (goal, "") if turn == 0 else ("", "")

    async def actions(self, reply: str, view: View) -> tuple[Action, ...]:
        script = SCRIPTS.get(view.task)
        if script is None or not isinstance(view.environment, MiniWobEnvironment):
            raise NoActionError(f"there is no script for {view.task}; those there are: {', '.join(SCRIPTS)}")
        if view.random.random() < self.detours:
            return (Action(ActionKind.MOVE, point=(view.random.random(), view.random.random())),)
        return (script(ScriptPage(view.goal, await view.environment.elements())),)

    def history_text(self, reply: str, actions: tuple[Action, ...], size: Size) -> str:
        return " ".join(_words(action, size) for action in actions) or "nothing"


def _words(action: Action, size: Size) -> str:
    """In the language of the examples' small model, as far as it has words."""
    if action.point is not None:
        x, y = int(action.point[0] * size[0]) // CELL, int(action.point[1] * size[1]) // CELL
        return f"{action.kind.value} x{x} y{y}"
    return " ".join([action.kind.value, *action.keys, *([action.text] if action.text else [])])
