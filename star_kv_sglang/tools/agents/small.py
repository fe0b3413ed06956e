"""The agent of the small models in ``examples/tinygui``: ``x12 y20`` is a cell of the screen, and it clicks there."""

from __future__ import annotations

from dataclasses import dataclass

from star_kv_sglang.tools.actions import Action, ActionKind
from star_kv_sglang.tools.rollout.agent import NoActionError, Size, View
from star_kv_sglang.tools.rollout.scoring import parse_point


@dataclass(frozen=True, slots=True)
class SmallAgent:
    """Asks as the small models were trained: the step's name, the screenshot, the question.

    Attributes:
        max_tokens: Longest reply.
    """

    name: str = "small"
    max_tokens: int = 8

    def system_text(self, goal: str, size: Size) -> str | None:
        return None

    def user_texts(self, goal: str, turn: int) -> tuple[str, str]:
        return f"step{turn + 1}", ("" if turn else goal)

    async def actions(self, reply: str, view: View) -> tuple[Action, ...]:
        point = parse_point(reply)
        if point is None:
            raise NoActionError(f"{reply!r} is no cell of the screen, such as x12 y20")
        return (Action(ActionKind.CLICK, point=(point[0] / view.size[0], point[1] / view.size[1])),)

    def history_text(self, reply: str, actions: tuple[Action, ...], size: Size) -> str:
        return reply
