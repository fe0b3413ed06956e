"""Draws what a step learns from: screens of the pool, and questions about them as words in a layout's places.

Everything is tensor arithmetic on the device. Besides the questions of the language, training asks ``read x12 y20
step2``, what stood somewhere on an earlier screen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from star_kv_sglang.tools.rollout.scoring import CELL
from tinygui.language import LAST_STEP, LONGEST_RECALL
from tinygui.training.layout import WORD, Layout
from tinygui.training.pool import FIELDS, MOST_WIDGETS, NUM_SCREENS, TOKEN, Trajectories, by_token
from tinygui.training.sizes import GRID, NUM_VISUAL

CLICK, READ, RECALL, READ_BACK = range(4)
KINDS = ("click", "read", "recall", "read back")

_COLOUR, _LETTER, _X, _Y, _LEFT, _TOP, _WIDTH, _HEIGHT = range(len(FIELDS))
_KIND_WORDS = tuple(WORD[word] for word in ("click", "read", "recall", "read"))
_STARTS = {name: WORD[word] for name, word in (("colour", "red"), ("letter", "A"), ("x", "x0"), ("y", "y0"))}
_TRIES = 3
_MOVED = 0.75
_LONGEST_GAP = 40
_END_WEIGHT = 0.2


@dataclass(frozen=True, slots=True)
class Batch:
    """B sequences of one layout; S screens, V visual tokens each, U questions.

    Attributes:
        patches: uint8 [B, S, V, 4, 768].
        shown: int64 [B, S, V], which of the screen's tokens they are.
        tokens: int64 [B, L].
        positions: int64 [B, 3, L].
        targets: int64 [B, U, 3], answers and their ends.
        weights: float32 [B, U, 3], of the targets in the loss.
        kinds: int64 [B, U], index into `KINDS`.
        back: int64 [B, U], screens back.
        boxes: int64 [B, U, 4], of the widgets asked for, in pixels of the screen as it is shown.
        rows: int64 [B], trajectories.
        shift: int64 [B, S, 2], how many pixels further down and right what is shown stands than it was drawn.
    """

    patches: torch.Tensor
    shown: torch.Tensor
    tokens: torch.Tensor
    positions: torch.Tensor
    targets: torch.Tensor
    weights: torch.Tensor
    kinds: torch.Tensor
    back: torch.Tensor
    boxes: torch.Tensor
    rows: torch.Tensor
    shift: torch.Tensor


@dataclass(frozen=True, slots=True)
class Mix:
    """What is asked: probabilities of `KINDS` where there is an earlier screen; without one the first two share.

    ``first`` is the weight of an answer's first word, a colour or a column, against its second, a letter or a row.
    """

    click: float = 0.2
    read: float = 0.15
    recall: float = 0.45
    read_back: float = 0.2
    first: float = 1.0


@dataclass(frozen=True, slots=True)
class View:
    """How windows are laid around a widget, and which world they are of.

    Attributes:
        held: side in pixels of the square in the widget's middle that a window holds; None: the whole widget.
        reach: how far from the window's middle the widget may be, as a share of what the window's size allows; nearer
            is likelier.
        pages: share of trajectories of the second world.
    """

    held: int | None = None
    reach: float = 1.0
    pages: float = 0.5


WIDGETS = View()


@dataclass(frozen=True, slots=True)
class _Window:
    """What is shown of screens.

    Attributes:
        shown: int64 [B, S, V], visual tokens.
        askable: bool [B, S, 12], widgets in view.
        origin: int64 [B, S, 2], first row and column of pixels.
        shift: int64 [B, S, 2], pixels from there to where it is shown.
    """

    shown: torch.Tensor
    askable: torch.Tensor
    origin: torch.Tensor
    shift: torch.Tensor


class Sampler:
    """Draws batches.

    A window is cut out at any pixel and shown in any place of the screen's grid of tokens.

    Args:
        trajectories: Where screens come from.
        seed: Of the random numbers.
        gaps: Whether positions of later turns are moved on at random, as by questions in between.
        parts: The trajectories of each world, in order, where there are two.
    """

    def __init__(
        self, trajectories: Trajectories, seed: int, *, gaps: bool = True, parts: Sequence[Trajectories] = ()
    ) -> None:
        self._from = trajectories
        self._parts = parts or (trajectories,)
        self._device = trajectories.pixels.device
        self._random = torch.Generator(self._device).manual_seed(seed)
        self._gaps = gaps
        # Copies to the device wait for it: everything that steps need is there beforehand.
        self._kind_words = torch.tensor(_KIND_WORDS, device=self._device)
        self._chances: dict[Mix, tuple[torch.Tensor, ...]] = {}
        self._weights: dict[float, torch.Tensor] = {}

    def draw(
        self, layout: Layout, count: int, mix: Mix, rows: torch.Tensor | None = None, view: View = WIDGETS
    ) -> Batch:
        """``count`` sequences; of the trajectories ``rows`` int64 [count] where given."""
        spec = layout.spec
        if rows is None:
            rows = self._rows(count, view.pages)
        first = self._integers(NUM_SCREENS - spec.screens + 1, (count, 1))
        screens = first + torch.arange(spec.screens, device=self._device)
        widgets = self._from.widgets[rows[:, None], screens]
        window = self._window(layout, widgets, view)
        patches = by_token(self._pixels(rows, screens, window, spec.window))
        widgets = _shifted(widgets, window.shift)
        step = self._integers(LAST_STEP - spec.screens + 1, (count, 1))
        kinds, back = self._kinds(layout, count, mix)
        chosen = self._widgets(layout, widgets, window.askable, kinds, back)
        tokens = layout.tokens.expand(count, -1).clone()
        steps = WORD["step1"] + step + torch.arange(spec.screens, device=self._device)
        tokens[:, layout.steps] = steps
        words = self._words(layout, chosen, kinds, back, steps)
        if mix.first not in self._weights:
            self._weights[mix.first] = torch.tensor([mix.first, 1.0, _END_WEIGHT * mix.first], device=self._device)
        tokens[:, layout.words] = words
        end = torch.full_like(words[..., :1], WORD["<|im_end|>"])
        targets = torch.cat([words[..., 4:], end], dim=2)
        positions = self._positions(layout, window.shown)
        return Batch(
            patches,
            window.shown,
            tokens,
            positions,
            targets,
            self._weights[mix.first].expand(targets.shape),
            kinds,
            back,
            chosen[..., _LEFT:],
            rows,
            window.shift,
        )

    def _integers(self, below: int, shape: tuple[int, ...]) -> torch.Tensor:
        return torch.randint(below, shape, generator=self._random, device=self._device)

    def _uniform(self, shape: tuple[int, ...]) -> torch.Tensor:
        return torch.rand(shape, generator=self._random, device=self._device)

    def _rows(self, count: int, pages: float) -> torch.Tensor:
        """Trajectories int64 [count], a share of them of pages where there are parts for both worlds."""
        if len(self._parts) == 1:
            return self._integers(self._parts[0].num_filled, (count,))
        panels = self._integers(self._parts[0].num_filled, (count,))
        if pages == 0:
            return panels
        others = len(self._parts[0].widgets) + self._integers(self._parts[1].num_filled, (count,))
        return torch.where(self._uniform((count,)) < pages, others, panels)

    def _window(self, layout: Layout, widgets: torch.Tensor, view: View) -> _Window:
        """What is shown of each screen: all of it, or a window around one of its widgets."""
        exists = widgets[..., _COLOUR] >= 0
        shape = tuple(exists.shape[:2])
        if layout.spec.window == GRID:
            every = torch.arange(NUM_VISUAL, device=self._device)
            origin = torch.zeros((*shape, 2), dtype=torch.int64, device=self._device)
            return _Window(every.expand(*shape, -1), exists, origin, origin)
        order = self._uniform(tuple(exists.shape)).masked_fill(~exists, -1).argmax(-1, keepdim=True)
        box = widgets.gather(2, order[..., None].expand(-1, -1, -1, len(FIELDS)))[:, :, 0]
        # What is nearly in the middle is learned first, and what stands a little further away from it.
        near = self._uniform(shape)
        origins, places, inside = [], [], exists
        for axis, (start, length) in enumerate(((_TOP, _HEIGHT), (_LEFT, _WIDTH))):
            side, whole = layout.spec.window[axis] * TOKEN, GRID[axis] * TOKEN
            held = box[..., length] if view.held is None else torch.full_like(box[..., length], view.held)
            play = view.reach * near * (side - held).clamp(min=0) * (self._uniform(shape) - 0.5)
            first = (box[..., start] + box[..., length] // 2 - side // 2 + play.long()).clamp(0, whole - side)
            origins.append(first)
            places.append(self._integers(GRID[axis] - layout.spec.window[axis] + 1, shape))
            begin, end = widgets[..., start], widgets[..., start] + widgets[..., length]
            inside = inside & (begin >= first[..., None]) & (end <= first[..., None] + side)
        around = torch.arange(MOST_WIDGETS, device=self._device) == order
        origin, place = torch.stack(origins, -1), torch.stack(places, -1)
        rows = place[..., :1] + torch.arange(layout.spec.window[0], device=self._device)
        columns = place[..., 1:] + torch.arange(layout.spec.window[1], device=self._device)
        shown = (rows[..., :, None] * GRID[1] + columns[..., None, :]).flatten(2)
        return _Window(shown, inside | around, origin, place * TOKEN - origin)

    def _pixels(
        self, rows: torch.Tensor, screens: torch.Tensor, window: _Window, size: tuple[int, int]
    ) -> torch.Tensor:
        """Pixels uint8 [B, S, height, width, 3] of what is shown."""
        if size == GRID:
            return self._from.pixels[rows[:, None], screens]
        down = window.origin[..., :1] + torch.arange(size[0] * TOKEN, device=self._device)
        right = window.origin[..., 1:] + torch.arange(size[1] * TOKEN, device=self._device)
        return self._from.pixels[
            rows[:, None, None, None], screens[..., None, None], down[..., :, None], right[..., None, :]
        ]

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


def _shifted(widgets: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    """Widgets [B, S, 12, 8] whose screens' pixels stand ``shift`` [B, S, 2] px further down and right."""
    moved = widgets.clone()
    for axis, (start, length, cell) in enumerate(((_TOP, _HEIGHT, _Y), (_LEFT, _WIDTH, _X))):
        moved[..., start] += shift[..., None, axis]
        moved[..., cell] = (moved[..., start] + moved[..., length] // 2) // CELL
    return torch.where(widgets[..., _COLOUR, None] >= 0, moved, widgets)
