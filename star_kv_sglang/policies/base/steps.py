"""Steps that several policies take."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from star_kv_sglang.algorithm.params import ScorerParams
from star_kv_sglang.algorithm.pipeline import ScoredBatch, score_batch
from star_kv_sglang.algorithm.state import TrajectoryState
from star_kv_sglang.policies.base.interface import Observation


def window_saliency(seen: Observation, states: Sequence[TrajectoryState], params: ScorerParams) -> ScoredBatch:
    """The window's attention, boosted where the policy's `Norms` are high, with the axes on top.

    Args:
        seen: A batch whose queries were observed; its attention is written to.
        states: What each request inherits of this saliency.
        params: Which axes are on, and how strong.
    """
    return score_batch(
        seen.attended,
        seen.layouts,
        seen.kv_indptr,
        seen.frame_offsets,
        seen.frame_norms,
        states,
        params,
        ops=seen.ops,
    )


def calibrate(scores: torch.Tensor, seen: Observation) -> torch.Tensor:
    """Scale each layer's scores [U, N] to mean 1 over every request's past; 0 elsewhere, and where all are 0."""
    calibrated = torch.zeros_like(scores)
    for request in range(len(seen.layouts)):
        past = seen.past(request)
        if past.stop > past.start:
            mean = scores[:, past].mean(dim=1, keepdim=True)
            calibrated[:, past] = torch.where(mean > 0, scores[:, past] / mean, 0.0)
    return calibrated


def current_spans(seen: Observation) -> torch.Tensor:
    """Packed range of each request's newest screenshot, int32 [R, 2]; empty where there is none."""
    spans = [
        (seen.frame(request, -1).start, seen.frame(request, -1).stop) if layout.frames and layout.window else (0, 0)
        for request, layout in enumerate(seen.layouts)
    ]
    return torch.tensor(spans, dtype=torch.int32).to(seen.slots.device, non_blocking=True)
