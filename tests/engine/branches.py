"""Branches that share no screenshot, all of them at a time."""

from __future__ import annotations

from tests.engine.conversation import Chat, turn
from tests.engine.harness import TestEngine

NUM_OUTPUT = 4


def play(engine: TestEngine, num_branches: int, num_turns: int, *, first: int = 0) -> list[Chat]:
    """Branches without a common screenshot, a turn of all of them at a time."""
    chats = [Chat() for _ in range(num_branches)]
    for step in range(num_turns):
        asked = [turn(chat, first + 1000 * step + number) for number, chat in enumerate(chats)]
        answers = engine.answer_together(asked, NUM_OUTPUT)
        chats = [chat.reply(answer.text) for chat, answer in zip(asked, answers, strict=True)]
    return chats
