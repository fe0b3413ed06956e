"""A prefill batch as the steps of the method see it: scores, layouts, and the layouts as device tensors."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import TYPE_CHECKING

import torch

from star_kv_sglang.algorithm.to_device import to_device

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from star_kv_sglang.algorithm.layout import PromptLayout
    from star_kv_sglang.algorithm.params import ScorerParams
    from star_kv_sglang.algorithm.state import TrajectoryState
    from star_kv_sglang.triton_ops.dispatch import Ops


@dataclass(frozen=True)
class ScoringBatch:
    """Inputs of the method, checked to belong together (triton_ops/LAYOUT.md has the layouts).

    group_scores [L, G, N] float32; kv_indptr [R+1] int32; frame_offsets, frame_norms [L, N]; layouts: one per request.
    windows [R], spans [R, 2] and grids [R, 2] of the current frames: the layouts as int32 tensors.
    max_span, max_num_live: the largest on the host, so that no launch has to ask the device.
    """

    group_scores: torch.Tensor
    kv_indptr: torch.Tensor
    frame_offsets: torch.Tensor
    frame_norms: torch.Tensor
    layouts: tuple[PromptLayout, ...]
    params: ScorerParams
    ops: Ops
    windows: torch.Tensor
    spans: torch.Tensor
    grids: torch.Tensor
    max_span: int
    max_num_live: int

    @classmethod
    def build(
        cls,
        group_scores: torch.Tensor,
        layouts: Sequence[PromptLayout],
        kv_indptr: torch.Tensor,
        frame_offsets: torch.Tensor,
        frame_norms: torch.Tensor,
        params: ScorerParams,
        ops: Ops,
    ) -> ScoringBatch:
        """Check the inputs and bring the layouts to the device; raises ValueError with every reason at once."""
        _check(group_scores, layouts, kv_indptr, frame_offsets, frame_norms)
        starts = [0]
        for layout in layouts:
            starts.append(starts[-1] + layout.num_live)
        spans = [_current_span(layout, first) for layout, first in zip(layouts, starts, strict=False)]
        grids = [_current_grid(layout, params.grid) for layout in layouts]
        windows, flat_spans, flat_grids = _tables(
            ([layout.window for layout in layouts], chain(*spans), chain(*grids)), group_scores.device
        )
        return cls(
            group_scores=group_scores,
            kv_indptr=kv_indptr,
            frame_offsets=frame_offsets,
            frame_norms=frame_norms,
            layouts=tuple(layouts),
            params=params,
            ops=ops,
            windows=windows,
            spans=flat_spans.view(-1, 2),
            grids=flat_grids.view(-1, 2),
            max_span=max(end - start for start, end in spans),
            max_num_live=max(layout.num_live for layout in layouts),
        )

    @cached_property
    def frame_ages(self) -> torch.Tensor:
        """int32 [N], screenshots after each token's own; 0 for text and the current one."""
        ages = torch.zeros(self.group_scores.shape[2], dtype=torch.int32)
        first = 0
        for layout in self.layouts:
            for age, frame in enumerate(reversed(layout.frames)):
                ages[first + frame.start : first + frame.end] = age
            first += layout.num_live
        return ages.to(self.group_scores.device, non_blocking=True)

    def spans_of(self, used: Sequence[bool]) -> torch.Tensor:
        """`spans` with those of unused requests emptied."""
        if all(used):
            return self.spans
        mask = to_device(used, self.spans.device, torch.bool)
        return torch.where(mask[:, None], self.spans, torch.zeros_like(self.spans))

    def empty_per_group(self) -> torch.Tensor:
        """Zeros [L, G] float32: the value of a branch that has none yet."""
        return self.group_scores.new_zeros(self.group_scores.shape[:2])

    def one_per_group(self) -> torch.Tensor:
        """Ones [L, G] float32: the stability of a branch without a pattern."""
        return self.group_scores.new_ones(self.group_scores.shape[:2])


def advances(layout: PromptLayout, state: TrajectoryState) -> bool:
    """Whether this prompt shows a screenshot that the state has not seen, and was observed."""
    return layout.window > 0 and bool(layout.frames) and layout.num_frames_total > state.num_frames


def stack_states(tensors: Sequence[torch.Tensor | None], empty: Callable[[], torch.Tensor]) -> torch.Tensor:
    """Stack per-branch tensors [L, ...] to [L, R, ...]; `empty` makes what stands in for None. Of one it is a view."""
    known = [empty() if tensor is None else tensor for tensor in tensors]
    return known[0][:, None] if len(known) == 1 else torch.stack(known, dim=1)


def own_part(stacked: torch.Tensor, request: int) -> torch.Tensor:
    """A request's part [L, ...] of a stacked tensor [L, R, ...], which keeps that of nobody else alive."""
    return stacked[:, 0] if stacked.shape[1] == 1 else stacked[:, request].clone()


def joined(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """Tensors side by side in the last dimension; a single one as it is."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), dim=-1)


def per_request(values: Sequence[float], device: torch.device) -> float | torch.Tensor:
    """One number for each request, float32 [R, 1]; the number itself where all have the same, which needs no copy."""
    numbers = torch.tensor(values, dtype=torch.float32)
    return numbers[0].item() if len(set(values)) == 1 else numbers.to(device, non_blocking=True)[:, None]


def _current_span(layout: PromptLayout, first: int) -> tuple[int, int]:
    if not layout.frames:
        return 0, 0
    return first + layout.frames[-1].start, first + layout.frames[-1].end


def _current_grid(layout: PromptLayout, kind: str) -> tuple[int, int]:
    if not layout.frames:
        return 1, 1
    current = layout.frames[-1]
    return current.square_grid() if kind == "square" else (current.rows, current.cols)


def _tables(tables: Sequence[Iterable[int]], device: torch.device) -> tuple[torch.Tensor, ...]:
    """Tables of numbers as int32 on the device, in one copy; each begins at 16 bytes, as one of its own would."""
    lists = [list(table) for table in tables]
    padded = [one + [0] * (-len(one) % 4) for one in lists]
    parts = torch.split(to_device(list(chain(*padded)), device), [len(one) for one in padded])
    return tuple(part[: len(one)] for part, one in zip(parts, lists, strict=True))


def _check(
    group_scores: torch.Tensor,
    layouts: Sequence[PromptLayout],
    kv_indptr: torch.Tensor,
    frame_offsets: torch.Tensor,
    frame_norms: torch.Tensor,
) -> None:
    num_layers, _, num_tokens = group_scores.shape
    problems = []
    if not layouts:
        problems.append("the batch has no requests")
    if kv_indptr.shape != (len(layouts) + 1,):
        problems.append(f"kv_indptr has shape {list(kv_indptr.shape)}, expected [{len(layouts) + 1}]")
    total = sum(layout.num_live for layout in layouts)
    if total != num_tokens or total == 0:
        problems.append(
            f"the layouts count {total} live tokens, the scores {num_tokens}; they must agree and be above 0"
        )
    for name, tensor in (("frame_offsets", frame_offsets), ("frame_norms", frame_norms)):
        if tensor.shape != (num_layers, num_tokens):
            problems.append(f"{name} has shape {list(tensor.shape)}, expected [{num_layers}, {num_tokens}]")
    if problems:
        raise ValueError("cannot score this batch:\n" + "\n".join(f"- {problem}" for problem in problems))
