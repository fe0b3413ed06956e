"""What a branch remembers of its trajectory between prompts."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class TrajectoryState:
    """State of one branch, of all layers together. Tensors are never written to, so a fork shares them.

    step: screenshots that have been scored.
    num_frames: screenshots of the prompt that was scored last; a state advances only when a prompt shows more.
    mi_ema [L, G] float32: running mutual information of scores and screen position, nats.
    pattern_ema [L, G, V]: running pattern of the scores on the newest screenshot, scaled to mean 1, in the parameters'
        pattern dtype; None before two screenshots were seen together.
    stability [L, G] float32: cosine of the last pattern and its running mean, 0..1.
    temperature_ema [L] float32: running entropy temperature.
    looks: the same of the saliency that no question has a part in; None where that was not looked at. What a question
        attends to and what stands out are different things: each saliency has its own step, information and pattern.
    """

    step: int = 0
    num_frames: int = 0
    mi_ema: torch.Tensor | None = None
    pattern_ema: torch.Tensor | None = None
    stability: torch.Tensor | None = None
    temperature_ema: torch.Tensor | None = None
    looks: TrajectoryState | None = None

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        """What takes memory."""
        tensors = (self.mi_ema, self.pattern_ema, self.stability, self.temperature_ema)
        own = tuple(tensor for tensor in tensors if tensor is not None)
        return own if self.looks is None else own + self.looks.tensors

    @property
    def num_bytes(self) -> int:
        """Bytes held by the tensors."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors)

    def without_patterns(self, newest: TrajectoryState) -> TrajectoryState:
        """Without the running patterns, but for those that ``newest`` shares: they take no memory of their own."""
        looks = self.looks
        if looks is not None:
            looks = looks.without_patterns(newest.looks or TrajectoryState())
        shares = self.pattern_ema is None or self.pattern_ema is newest.pattern_ema
        if shares and looks is self.looks:
            return self
        return replace(self, pattern_ema=self.pattern_ema if shares else None, looks=looks)
