"""Append-only conversations of a GUI agent: a turn is a screenshot and a few words, then the answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from star_kv_sglang.tools.bench.serve.client import Prompt

SCREEN = "<|vision_start|><|image_pad|><|vision_end|>"


@dataclass(frozen=True)
class Conversation:
    """A branch so far.

    Attributes:
        text: what was said.
        screens: the screenshots in it.
    """

    text: str
    screens: tuple[Path, ...] = ()

    def shown(self, screen: Path, *, number: int = 0) -> Conversation:
        """With one more screenshot of the user, and words that only the branch of this number says."""
        words = f"w{100 + len(self.screens)} {branch_name(number)}"
        turn = f"<|im_start|> user {words} {SCREEN} w50 w51 w52 w53 <|im_end|><|im_start|> assistant"
        return Conversation(self.text + turn, (*self.screens, screen))

    def answered(self, answer: str) -> Conversation:
        """With the agent's answer."""
        return replace(self, text=f"{self.text} {answer.strip()} <|im_end|>")

    @property
    def prompt(self) -> Prompt:
        return Prompt(self.text, self.screens)


def branch(number: int, screens: Sequence[Path], num_screens: int) -> Conversation:
    """A conversation whose history is one prompt: nothing after its first words is shared with another branch."""
    talk = Conversation(f"<|im_start|> system {branch_name(number)} <|im_end|>")
    for index in range(num_screens):
        talk = talk.shown(screens[(number + index) % len(screens)])
    return talk


def branch_name(number: int) -> str:
    """Two words for each number below 56,000, out of the thousand that the smallest tokenizer has."""
    return f"w{200 + number % 700} w{10 + number // 700}"
