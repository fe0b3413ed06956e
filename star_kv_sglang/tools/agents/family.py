"""An agent that speaks a model family's language: UI-TARS, Qwen2.5-VL, Qwen3-VL, OpenCUA."""

from __future__ import annotations

from dataclasses import dataclass

from star_kv_sglang.tools.actions import Action
from star_kv_sglang.tools.eval.errors import ReplyError
from star_kv_sglang.tools.eval.families.base import ModelFamily
from star_kv_sglang.tools.eval.samples import TaskKind
from star_kv_sglang.tools.rollout.agent import NoActionError, Size, View


@dataclass(frozen=True, slots=True)
class FamilyAgent:
    """Prompts and parser of a family, as ``star-kv eval`` has them.

    Attributes:
        family: Of the served model.
        max_tokens: Longest reply; thoughts included.
    """

    family: ModelFamily
    max_tokens: int = 512

    @property
    def name(self) -> str:
        """Names the agent in a rollout's folder."""
        return self.family.name

    def system_text(self, goal: str, size: Size) -> str | None:
        return self.family.system_text(TaskKind.COMPUTER, size)

    def user_texts(self, goal: str, turn: int) -> tuple[str, str]:
        # Once, before the first screenshot: the prompt's beginning stays the same from turn to turn.
        return (self.family.task_text(TaskKind.COMPUTER, goal), "") if turn == 0 else ("", "")

    async def actions(self, reply: str, view: View) -> tuple[Action, ...]:
        try:
            return self.family.parse(TaskKind.COMPUTER, reply, view.size)
        except ReplyError as error:
            raise NoActionError(str(error)) from error

    def history_text(self, reply: str, actions: tuple[Action, ...], size: Size) -> str:
        return reply
