"""How screens, questions and answers share one sequence.

The trunk is a conversation as it is served: screens, each with one or more questions and their answers. Branches are
further questions, each of which sees the trunk up to its screen and itself, never another branch: as if it had been
the one that was asked. All sequences of a layout have the same length, so that a training step can be recorded once.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from tinygui.training.sizes import GRID
from tinygui.training.weights import SHIPPED


def _vocabulary() -> dict[str, int]:
    words: dict[str, int] = json.loads((SHIPPED / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    return {word.removeprefix("\N{LOWER ONE EIGHTH BLOCK}"): number for word, number in words.items()}


WORD = _vocabulary()
"""Token of every word."""

HEADER = ("<|im_start|>", "user", "step1", "<|vision_start|>")
_ROLE = ("<|im_start|>", "user")
_UNIT = ("click", "red", "A", "here", "<|im_end|>", "<|im_start|>", "assistant", "x0", "y0", "<|im_end|>")
_WORD_PLACES = (0, 1, 2, 3, 7, 8)
"""Question words and answer words of a unit; the others are the same in all."""
_PREDICTING = (6, 7, 8)
"""What predicts the answer's two words and its end."""
_PLACEHOLDERS = 8


@dataclass(frozen=True, slots=True)
class LayoutSpec:
    """What a sequence holds.

    Attributes:
        screens: screens, oldest first.
        trunk: questions of the trunk a screen.
        branches: branches a screen that take the place of the trunk's first question.
        follow_ups: branches a screen that follow the trunk's first question.
        window: rows and columns of the visual tokens that are shown of each screen.
    """

    screens: int
    trunk: int = 1
    branches: tuple[int, ...] = ()
    follow_ups: tuple[int, ...] = ()
    window: tuple[int, int] = GRID

    def __post_init__(self) -> None:
        for name in ("branches", "follow_ups"):
            if len(getattr(self, name)) not in (0, self.screens):
                raise ValueError(f"{name} must give a number for each of {self.screens} screens")
        if self.trunk < 1:
            raise ValueError("a screen of the trunk needs at least one question")


@dataclass(slots=True)
class _Sequence:
    """A sequence under construction: a token, a position, a turn and a branch (-1: the trunk) a place."""

    tokens: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    turns: list[int] = field(default_factory=list)
    branches: list[int] = field(default_factory=list)

    def add(self, words: Sequence[str], start: int, turn: int, branch: int = -1) -> int:
        """Appends words and returns the position after them."""
        self.tokens += [WORD[word] for word in words]
        self.positions += range(start, start + len(words))
        self.turns += [turn] * len(words)
        self.branches += [branch] * len(words)
        return start + len(words)


class Layout:
    """A `LayoutSpec` as tensors; L places, a multiple of eight, S screens, V visual tokens a screen, U questions.

    Attributes:
        tokens: int64 [L], with stand-ins where a batch fills words in.
        positions: int64 [L], of screens where they start.
        turns: int64 [L], the screen that a place belongs to.
        sees: bool [L, L].
        visual: first place of each screen's tokens.
        steps: int64 [S], places of the screens' tags.
        words: int64 [U, 6], places of the question's four and the answer's two words.
        predicting: int64 [U, 3], places that predict the answer's words and its end.
        unit_turns: int64 [U], screen in view.
    """

    def __init__(self, spec: LayoutSpec, device: torch.device) -> None:
        self.spec = spec
        self.num_visual = spec.window[0] * spec.window[1]
        made = _Sequence()
        starts: list[tuple[int, int]] = []
        self.visual: list[int] = []
        # After each screen, and after the first question behind it: place and position.
        after_screen: list[tuple[int, int]] = []
        after_first: list[tuple[int, int]] = []
        steps, position = [], 0
        for turn in range(spec.screens):
            steps.append(len(made.tokens) + HEADER.index("step1"))
            position = made.add(HEADER, position, turn)
            self.visual.append(len(made.tokens))
            made.tokens += [WORD["<|image_pad|>"]] * self.num_visual
            made.positions += [position] * self.num_visual
            made.turns += [turn] * self.num_visual
            made.branches += [-1] * self.num_visual
            position = made.add(("<|vision_end|>",), position + max(GRID), turn)
            after_screen.append((len(made.tokens), position))
            for number in range(spec.trunk):
                position = made.add(_ROLE, position, turn) if number else position
                starts.append((len(made.tokens), turn))
                position = made.add(_UNIT, position, turn)
                if number == 0:
                    after_first.append((len(made.tokens), position))
        trunk = len(made.tokens)
        cuts: list[int] = []
        for turn, (cut, position) in enumerate(after_screen):
            for _ in range(spec.branches[turn] if spec.branches else 0):
                starts.append((len(made.tokens), turn))
                made.add(_UNIT[:-1], position, turn, len(cuts))
                cuts.append(cut)
        for turn, (cut, position) in enumerate(after_first):
            for _ in range(spec.follow_ups[turn] if spec.follow_ups else 0):
                starts.append((len(made.tokens) + len(_ROLE), turn))
                made.add(_ROLE + _UNIT[:-1], position, turn, len(cuts))
                cuts.append(cut)
        while len(made.tokens) % _PLACEHOLDERS:
            made.add(("<|endoftext|>",), 0, 0, len(cuts))
            cuts.append(0)

        def tensor(values: object) -> torch.Tensor:
            return torch.tensor(values, dtype=torch.int64, device=device)

        self.tokens, self.positions, self.turns = tensor(made.tokens), tensor(made.positions), tensor(made.turns)
        self.steps = tensor(steps)
        self.words = tensor([[start + place for place in _WORD_PLACES] for start, _ in starts])
        self.predicting = tensor([[start + place for place in _PREDICTING] for start, _ in starts])
        self.unit_turns = tensor([turn for _, turn in starts])
        self.sees = _sees(tensor(made.branches), tensor([*cuts, trunk]))

    @property
    def length(self) -> int:
        """Places, L."""
        return len(self.tokens)


def _sees(branch: torch.Tensor, cuts: torch.Tensor) -> torch.Tensor:
    """Causal; of the trunk a branch sees what lies before its cut, of the branches only itself."""
    place = torch.arange(len(branch), device=branch.device)
    causal = place[None, :] <= place[:, None]
    cut = cuts[branch]
    trunk = (branch[None, :] == -1) & (place[None, :] < cut[:, None])
    return causal & (trunk | (branch[None, :] == branch[:, None]))
