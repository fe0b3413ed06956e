"""Right answers by kind of question: of a batch, and of held-out seeds."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import torch

from star_kv_sglang.tools.rollout.scoring import CELL
from tinygui.training.batch import CLICK, KINDS, READ, RECALL, Batch, Mix, Sampler
from tinygui.training.layout import WORD, Layout, LayoutSpec
from tinygui.training.pool import NUM_SCREENS, Trajectories
from tinygui.training.step import Model, bias_of

_COUNT = 8
MIX = Mix(click=0.25, read=0.2, recall=0.55, read_back=0.0)


@dataclass(slots=True)
class Tally:
    """Right answers and questions by name."""

    right: Counter[str] = field(default_factory=Counter)
    asked: Counter[str] = field(default_factory=Counter)

    def add(self, batch: Batch, predicted: torch.Tensor) -> None:
        """Count a batch: points inside their boxes, words that are the same; of read ones, letters alone as well."""
        correct = is_right(batch, predicted)
        for kind, name in enumerate(KINDS):
            self._count(name, correct[batch.kinds == kind])
        letters = predicted[..., 1] == batch.targets[..., 1]
        self._count("letter", letters[batch.kinds == READ])
        for back in range(1, NUM_SCREENS):
            self._count(f"recall {back} back", correct[(batch.kinds == RECALL) & (batch.back == back)])

    def _count(self, name: str, correct: torch.Tensor) -> None:
        if correct.numel():
            self.right[name] += int(correct.sum())
            self.asked[name] += correct.numel()

    def share(self, name: str) -> float:
        """Of right answers; 0 where nothing was asked."""
        return self.right[name] / self.asked[name] if self.asked[name] else 0.0

    def line(self) -> str:
        """All in one line."""
        return ", ".join(f"{name} {self.share(name):.1%} of {self.asked[name]}" for name in self.asked)


def is_right(batch: Batch, predicted: torch.Tensor) -> torch.Tensor:
    """Whether the likeliest words [B, U, 3] answer the questions, bool [B, U]."""
    same = (predicted[..., :2] == batch.targets[..., :2]).all(-1)
    x = (predicted[..., 0] - WORD["x0"]) * CELL + CELL // 2
    y = (predicted[..., 1] - WORD["y0"]) * CELL + CELL // 2
    left, top, width, height = batch.boxes.unbind(-1)
    hit = (x >= left) & (x < left + width) & (y >= top) & (y < top + height)
    hit &= predicted[..., 0] < WORD["y0"]
    points = (batch.kinds == CLICK) | (batch.kinds == RECALL)
    return torch.where(points, hit, same)


@torch.no_grad()
def evaluate(model: Model, trajectories: Trajectories, spec: LayoutSpec) -> Tally:
    """Every trajectory once, in the layout of ``spec``; reference answers stand in the history."""
    device = trajectories.pixels.device
    layout = Layout(spec, device)
    bias = bias_of(layout, model.dtype)
    sampler = Sampler(trajectories, 0, gaps=False)
    tally = Tally()
    for start in range(0, len(trajectories.widgets), _COUNT):
        rows = torch.arange(start, min(start + _COUNT, len(trajectories.widgets)), device=device)
        batch = sampler.draw(layout, len(rows), MIX, rows)
        logits = model.logits(layout, bias, batch, model.tables.interpolations["aligned"])
        tally.add(batch, logits.argmax(-1))
    return tally
