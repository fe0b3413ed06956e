"""ST-Lite (arXiv 2603.00188): attention around a token counts, and what the trajectory shows again goes first.

The paper names two branches of one score. *Component-centric spatial saliency* keeps interactive elements whole, by the
saliency of a token's neighbourhood on the screen. *Trajectory-aware semantic gating* filters key-value pairs that the
trajectory repeats. Only its abstract could be read for this file, and no formula of it; what is said here in their
place:

- Saliency is the attention of the prompt's last queries, mean over the heads, and of it the mean over the up to
  ``neighbourhood`` x ``neighbourhood`` live tokens around a token. Pooling is on the screen, not along the sequence.
- A token is repeated where the next screenshot has a live token at the same place whose value, over all key heads of
  the layer, has a cosine of at least ``repeated`` with its own. Values and not keys: keys are rotated by their
  position. Repeated tokens are kept behind all others. So of what stays on the screen the last copy stays.
- All layers get the same budget, as in the paper; all screenshots' tokens compete.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch.nn import functional as F

from star_kv_sglang.errors import ConfigError
from star_kv_sglang.limits import COUNT, POSITIVE_SHARE, limited
from star_kv_sglang.policies.base.interface import KVPolicy, Observation, PolicyScores
from star_kv_sglang.policies.base.params import WindowParams
from star_kv_sglang.policies.base.steps import calibrate

NONE = -1
"""Stands at places of a screenshot without a live token."""


@dataclass(frozen=True)
class Params(WindowParams):
    """Of the two branches.

    Attributes:
        neighbourhood: Side of the square of tokens whose attention a token is scored by, odd; 1: its own.
        repeated: Least cosine of two values at the same place of two screenshots, one after the other, that show the
            same, in (0, 1].
    """

    neighbourhood: int = limited(3, COUNT)
    repeated: float = limited(0.9, POSITIVE_SHARE)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.neighbourhood % 2 == 0:
            raise ConfigError(f"neighbourhood {self.neighbourhood} must be odd")


class Policy(KVPolicy[Params]):
    """Every layer keeps its own tokens."""

    needs_one_rank = True

    def score(self, seen: Observation) -> PolicyScores:
        """Attention around each visual token; those that are shown again are below all others of their request."""
        scores = calibrate(seen.attended.mean(dim=1), seen)
        for request, layout in enumerate(seen.layouts):
            past = seen.past(request)
            if past.stop == past.start:
                continue
            for index, frame in enumerate(layout.frames):
                span = seen.frame(request, index)
                if frame.num_live:
                    scores[:, span] = around(
                        scores[:, span], seen.frame_offsets[:, span], frame.rows, frame.cols, self.params.neighbourhood
                    )
            self._demote(scores, request, seen)
        return PolicyScores.of(scores, seen)

    def _demote(self, scores: torch.Tensor, request: int, seen: Observation) -> None:
        """Put what the next screenshot shows again below everything else."""
        frames = seen.layouts[request].frames
        below = scores[:, seen.past(request)].amax(dim=1, keepdim=True) + 1
        for index, (frame, after) in enumerate(pairwise(frames)):
            same_grid = (frame.rows, frame.cols) == (after.rows, after.cols)
            if not same_grid or not frame.num_live or not after.num_live:
                continue
            span, later = seen.frame(request, index), seen.frame(request, index + 1)
            again = is_repeated(seen, span, later, frame.rows * frame.cols, self.params.repeated)
            scores[:, span] -= torch.where(again, below, 0.0)


def around(scores: torch.Tensor, offsets: torch.Tensor, rows: int, cols: int, side: int) -> torch.Tensor:
    """Mean over the live tokens around each token, itself included.

    Args:
        scores: float32 [U, V], of a screenshot's live tokens.
        offsets: integer [U, V], their places, ``row * cols + col``; each unit may hold others.
        rows: Of the screenshot's grid.
        cols: Likewise.
        side: Of the square, odd.

    Returns:
        float32 [U, V].
    """
    places = offsets.long()
    boards = torch.zeros(2, scores.shape[0], rows * cols, device=scores.device, dtype=scores.dtype)
    boards[0].scatter_(1, places, scores)
    boards[1].scatter_(1, places, torch.ones_like(scores))
    sums = F.avg_pool2d(boards.view(2, -1, rows, cols), side, stride=1, padding=side // 2, divisor_override=1)
    total, count = sums.flatten(2)
    mean: torch.Tensor = (total / count.clamp(min=1)).gather(1, places)
    return mean


def is_repeated(seen: Observation, span: slice, later: slice, num_places: int, least: float) -> torch.Tensor:
    """Whether a later screenshot holds about the same value at the same place.

    Args:
        seen: The batch.
        span: Packed range of a screenshot, V live tokens.
        later: That of the later one, of the same grid.
        num_places: Of the grid.
        least: Least cosine.

    Returns:
        bool [L, V].
    """
    units = seen.frame_offsets.shape[0]
    at = torch.full((units, num_places), NONE, device=seen.slots.device, dtype=torch.long)
    where = torch.arange(later.start, later.stop, device=seen.slots.device).expand(units, -1)
    at.scatter_(1, seen.frame_offsets[:, later].long(), where)
    copies = at.gather(1, seen.frame_offsets[:, span].long())  # [L, V], packed index of the copy
    found = torch.empty_like(copies, dtype=torch.bool)
    for layer, values in enumerate(seen.values):
        own = values[seen.slots[span]].flatten(1).float()
        other = values[seen.slots[copies[layer].clamp(min=0)]].flatten(1).float()
        found[layer] = (F.cosine_similarity(own, other, dim=1) >= least) & (copies[layer] != NONE)
    return found
