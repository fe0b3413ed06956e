"""Draws what a step learns from: screens of the pool, and questions about them as words in a layout's places.

Everything is tensor arithmetic on the device. Besides the questions of the language, training asks ``read x12 y20
step2``, what stood somewhere on an earlier screen.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from tinygui.language import LAST_STEP, LONGEST_RECALL
from tinygui.training.layout import WORD, Layout
from tinygui.training.pool import FIELDS, MOST_WIDGETS, NUM_SCREENS, Trajectories
from tinygui.training.sizes import GRID, MERGE, NUM_VISUAL, PATCH

CLICK, READ, RECALL, READ_BACK = range(4)
KINDS = ("click", "read", "recall", "read back")

_TOKEN = MERGE * PATCH
_COLOUR, _LETTER, _X, _Y, _LEFT, _TOP, _WIDTH, _HEIGHT = range(len(FIELDS))
_KIND_WORDS = tuple(WORD[word] for word in ("click", "read", "recall", "read"))
_STARTS = {name: WORD[word] for name, word in (("colour", "red"), ("letter", "A"), ("x", "x0"), ("y", "y0"))}
_TRIES = 3
_MOVED = 0.75
_LONGEST_GAP = 40


@dataclass(frozen=True, slots=True)
class Batch:
    """B sequences of one layout; S screens, V visual tokens each, U questions.

    Attributes:
        patches: uint8 [B, S, V, 4, 768].
        shown: int64 [B, S, V], which of the screen's tokens they are.
        tokens: int64 [B, L].
        positions: int64 [B, 3, L].
        targets: int64 [B, U, 3], answers and their ends.
        kinds: int64 [B, U], index into `KINDS`.
        back: int64 [B, U], screens back.
        boxes: int64 [B, U, 4], of the widgets asked for, in pixels.
    """

    patches: torch.Tensor
    shown: torch.Tensor
    tokens: torch.Tensor
    positions: torch.Tensor
    targets: torch.Tensor
    kinds: torch.Tensor
    back: torch.Tensor
    boxes: torch.Tensor


@dataclass(frozen=True, slots=True)
class Mix:
    """What is asked: probabilities of `KINDS` where there is an earlier screen; without one the first two share."""

    click: float = 0.2
    read: float = 0.15
    recall: float = 0.45
    read_back: float = 0.2


class Sampler:
    """Draws batches.

    Args:
        trajectories: Where screens come from.
        seed: Of the random numbers.
        gaps: Whether positions of later turns are moved on at random, as by questions in between.
    """

    def __init__(self, trajectories: Trajectories, seed: int, *, gaps: bool = True) -> None:
        self._from = trajectories
        self._device = trajectories.patches.device
        self._random = torch.Generator(self._device).manual_seed(seed)
        self._gaps = gaps
        # Copies to the device wait for it: everything that steps need is there beforehand.
        self._kind_words = torch.tensor(_KIND_WORDS, device=self._device)
        self._chances: dict[Mix, tuple[torch.Tensor, ...]] = {}

    def draw(self, layout: Layout, count: int, mix: Mix, rows: torch.Tensor | None = None) -> Batch:
        """``count`` sequences; of the trajectories ``rows`` int64 [count] where given."""
        spec = layout.spec
        if rows is None:
            rows = self._integers(len(self._from.widgets), (count,))
        first = self._integers(NUM_SCREENS - spec.screens + 1, (count, 1))
        screens = first + torch.arange(spec.screens, device=self._device)
        widgets = self._from.widgets[rows[:, None], screens]
        shown, askable = self._shown(layout, widgets)
        patches = self._from.patches[rows[:, None, None], screens[..., None], shown]
        step = self._integers(LAST_STEP - spec.screens + 1, (count, 1))
        kinds, back = self._kinds(layout, count, mix)
        chosen = self._widgets(layout, widgets, askable, kinds, back)
        tokens = layout.tokens.expand(count, -1).clone()
        steps = WORD["step1"] + step + torch.arange(spec.screens, device=self._device)
        tokens[:, layout.steps] = steps
        words = self._words(layout, chosen, kinds, back, steps)
        tokens[:, layout.words] = words
        end = torch.full_like(words[..., :1], WORD["<|im_end|>"])
        targets = torch.cat([words[..., 4:], end], dim=2)
        positions = self._positions(layout, shown)
        return Batch(patches, shown, tokens, positions, targets, kinds, back, chosen[..., _LEFT:])

    def _integers(self, below: int, shape: tuple[int, ...]) -> torch.Tensor:
        return torch.randint(below, shape, generator=self._random, device=self._device)

    def _uniform(self, shape: tuple[int, ...]) -> torch.Tensor:
        return torch.rand(shape, generator=self._random, device=self._device)

    def _shown(self, layout: Layout, widgets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Visual tokens [B, S, V] in view, and which widgets [B, S, 12] stand wholly in it."""
        exists = widgets[..., _COLOUR] >= 0
        height, width = layout.spec.window
        if (height, width) == GRID:
            every = torch.arange(NUM_VISUAL, device=self._device)
            return every.expand(*widgets.shape[:2], -1), exists
        # The window is put around one widget, anywhere that holds it.
        centre = self._uniform(exists.shape).masked_fill(~exists, -1).argmax(-1, keepdim=True)
        box = widgets.gather(2, centre[..., None].expand(-1, -1, -1, len(FIELDS)))[:, :, 0]
        top = self._window(box[..., _TOP], box[..., _HEIGHT], height, GRID[0])
        left = self._window(box[..., _LEFT], box[..., _WIDTH], width, GRID[1])
        rows = top[..., None] + torch.arange(height, device=self._device)
        columns = left[..., None] + torch.arange(width, device=self._device)
        shown = (rows[..., :, None] * GRID[1] + columns[..., None, :]).flatten(2)
        inside = exists & _within(widgets[..., _TOP], widgets[..., _HEIGHT], top, height)
        return shown, inside & _within(widgets[..., _LEFT], widgets[..., _WIDTH], left, width)

    def _window(self, start: torch.Tensor, length: torch.Tensor, window: int, most: int) -> torch.Tensor:
        """First row or column of a window that holds [start, start + length)."""
        first, last = start // _TOKEN, (start + length - 1) // _TOKEN
        low, high = (last - window + 1).clamp(min=0), first.clamp(max=most - window)
        return low + (self._uniform(tuple(low.shape)) * (high - low + 1)).long().clamp(max=(high - low))

    def _kinds(self, layout: Layout, count: int, mix: Mix) -> tuple[torch.Tensor, torch.Tensor]:
        """Kinds and screens back, [B, U] each."""
        shape = (count, len(layout.unit_turns))
        turn = layout.unit_turns.expand(shape)
        if mix not in self._chances:
            weights = ([mix.click, mix.read, mix.recall, mix.read_back], [mix.click, mix.read, 0.0, 0.0])
            self._chances[mix] = tuple(torch.tensor(row, device=self._device).cumsum(0) for row in weights)
        later, first = self._chances[mix]
        chances = torch.where((turn > 0)[..., None], later, first)
        mark = self._uniform(shape)[..., None] * chances[..., -1:]
        kinds = (mark >= chances).sum(-1).clamp(max=READ_BACK)
        kinds = torch.where(turn > 0, kinds, kinds.clamp(max=READ))
        back = 1 + (self._uniform(shape) * turn.clamp(max=LONGEST_RECALL)).long().clamp(max=LONGEST_RECALL - 1)
        return kinds, torch.where(kinds >= RECALL, torch.minimum(back, turn), torch.zeros_like(back))

    def _widgets(
        self, layout: Layout, widgets: torch.Tensor, askable: torch.Tensor, kinds: torch.Tensor, back: torch.Tensor
    ) -> torch.Tensor:
        """The widgets asked for, [B, U, 8]: of the screen in view all in turn, of earlier ones rather moved ones."""
        count, units = kinds.shape
        turn = layout.unit_turns.expand(count, -1)
        batch = torch.arange(count, device=self._device)[:, None]
        order = self._uniform(tuple(askable.shape)).masked_fill(~askable, -1).argsort(dim=-1, descending=True)
        number = torch.arange(units, device=self._device) % askable.sum(-1)[batch, turn].clamp(min=1)
        current = widgets[batch, turn, order[batch, turn, number]]
        target = turn - back
        drawn = self._uniform((count, units, _TRIES)) * (widgets[..., _COLOUR] >= 0).sum(-1)[batch, target, None]
        tries = widgets[batch[..., None], target[..., None], drawn.long().clamp(max=MOST_WIDGETS - 1)]
        there = widgets[batch, turn][:, :, None]
        same = [(tries[..., None, field] == there[..., field]) for field in (_COLOUR, _LETTER, _LEFT, _TOP)]
        moved = ~(same[0] & same[1] & same[2] & same[3]).any(-1)
        wanted = self._uniform((count, units)) < _MOVED
        pick = torch.where(wanted, moved.int().argmax(-1), torch.zeros_like(turn))
        earlier = tries.gather(2, pick[..., None, None].expand(-1, -1, 1, len(FIELDS)))[:, :, 0]
        return torch.where((back > 0)[..., None], earlier, current)

    def _words(
        self, layout: Layout, widgets: torch.Tensor, kinds: torch.Tensor, back: torch.Tensor, steps: torch.Tensor
    ) -> torch.Tensor:
        """Question and answer [B, U, 6]."""
        label = torch.stack([widgets[..., _COLOUR] + _STARTS["colour"], widgets[..., _LETTER] + _STARTS["letter"]], 2)
        place = torch.stack([widgets[..., _X] + _STARTS["x"], widgets[..., _Y] + _STARTS["y"]], 2)
        by_place = ((kinds == READ) | (kinds == READ_BACK))[..., None]
        kind = self._kind_words[kinds]
        tag = steps.gather(1, layout.unit_turns - back)
        when = torch.where(back > 0, tag, torch.full_like(tag, WORD["here"]))
        asked, answer = torch.where(by_place, place, label), torch.where(by_place, label, place)
        return torch.cat([kind[..., None], asked, when[..., None], answer], dim=2)

    def _positions(self, layout: Layout, shown: torch.Tensor) -> torch.Tensor:
        """Rotary positions [B, 3, L], with gaps between turns half of the time."""
        count, screens = shown.shape[:2]
        positions = layout.positions.expand(count, 3, -1).clone()
        for index, start in enumerate(layout.visual):
            positions[:, 1, start : start + layout.num_visual] += shown[:, index] // GRID[1]
            positions[:, 2, start : start + layout.num_visual] += shown[:, index] % GRID[1]
        if not self._gaps:
            return positions
        gaps = self._integers(_LONGEST_GAP, (count, screens)) * self._integers(2, (count, 1))
        return positions + gaps.cumsum(1)[:, None, layout.turns]


def _within(start: torch.Tensor, length: torch.Tensor, first: torch.Tensor, window: int) -> torch.Tensor:
    """Whether pixels [start, start + length) lie in the window's tokens."""
    first = first[..., None]
    return (start >= first * _TOKEN) & (start + length <= (first + window) * _TOKEN)
