"""A branch's conversation: the screenshots and words so far. It only grows, so a server finds it in its cache."""

from __future__ import annotations

import base64
from collections.abc import Sequence

from star_kv_sglang.tools.chat import Message
from star_kv_sglang.tools.rollout.agent import Agent, Size


class Conversation:
    """Messages of one branch.

    Args:
        agent: Says what stands around the screenshots.
        goal: What the user wants, in words.
        size: Of the screenshots, in pixels.
    """

    def __init__(self, agent: Agent, goal: str, size: Size) -> None:
        self._agent = agent
        self._goal = goal
        self._turn = 0
        self._refusal: str | None = None
        system = agent.system_text(goal, size)
        self._messages: list[Message] = [] if system is None else [{"role": "system", "content": system}]

    @property
    def messages(self) -> Sequence[Message]:
        """What the model is sent now."""
        return self._messages

    def show(self, png: bytes, instruction: str = "") -> None:
        """The user shows a screenshot, and says what an environment that instructs has them say."""
        before, after = self._agent.user_texts(self._goal, self._turn)
        told = "" if self._refusal is None else f"Not done: {self._refusal}."
        url = "data:image/png;base64," + base64.b64encode(png).decode("ascii")
        image = {"type": "image_url", "image_url": {"url": url}}
        content = [*_text(told), *_text(before), image, *_text(after), *_text(instruction)]
        self._messages.append({"role": "user", "content": content})

    def hear(self, said: str, refusal: str | None) -> None:
        """The assistant has answered; ``refusal`` says why nothing came of it, which the user says next."""
        self._messages.append({"role": "assistant", "content": said})
        self._refusal = refusal
        self._turn += 1


def _text(text: str) -> list[Message]:
    return [{"type": "text", "text": text}] if text else []
