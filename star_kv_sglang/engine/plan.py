"""What a prefill batch asks of the scorer, on the host, before its forward pass."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from sglang.srt.mem_cache.radix_cache import RadixKey

from star_kv_sglang.algorithm.layout import FrameSpan, PromptLayout
from star_kv_sglang.algorithm.state import TrajectoryState
from star_kv_sglang.cache.lookup import held_length
from star_kv_sglang.cache.segments import Frame, LiveIndex, Segment, segments_between
from star_kv_sglang.engine.image_window import WHOLE_HISTORY, ImageWindow
from star_kv_sglang.policies.base.interface import Queries

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import Req
    from sglang.srt.mem_cache.radix_cache import TreeNode

    from star_kv_sglang.cache.radix_cache import StarRadixCache


@dataclass(frozen=True)
class RequestPlan:
    """One request of a prefill batch.

    Attributes:
        req: SGLang's request.
        layout: Live tokens, window and frames for the scorer.
        new_start: Position of the first token that this forward computes.
        new_end: Position after the last.
        new_frames: Frames that overlap the new positions.
        segments: Private segments that may be pruned after this forward, in order; empty when it is not the prompt's
            end.
        segment_starts: Live index of the first core token of each segment.
        quota: Tokens that the segments of the window may keep together.
        num_outside: How many of the segments, the first ones, belong to screenshots before the window.
        quota_outside: Tokens that these may keep together.
        state: Trajectory state that the request inherits.
        budget: Share of its private visual tokens that stay.
        stored_frames: Indices of the screenshots all of whose scores are stored.
        uncut_frames: Indices of the screenshots that lose nothing after this forward where all keep the same share:
            they are shared, or hold no more than theirs.
        left_whole: It is not scored although its prompt ends: there is no memory left for it beside its batch.
    """

    req: Req
    layout: PromptLayout
    new_start: int
    new_end: int
    new_frames: tuple[Frame, ...]
    segments: tuple[Segment, ...]
    segment_starts: tuple[int, ...]
    quota: int
    state: TrajectoryState
    budget: float
    stored_frames: frozenset[int] = frozenset()
    uncut_frames: frozenset[int] = frozenset()
    num_outside: int = 0
    quota_outside: int = 0
    left_whole: bool = False

    @property
    def groups(self) -> list[tuple[Sequence[Segment], int]]:
        """Segments that share a budget, and that budget: those before the window, where there are any, and its own.

        Before the window nothing stays beside the budget.
        """
        outside, inside = none_apart(self.segments[: self.num_outside]), self.segments[self.num_outside :]
        return [*([(outside, self.quota_outside)] if outside else []), (inside, self.quota)]

    @property
    def known_apart(self) -> list[int | None]:
        """Tokens of each segment that stay beside the budget: none before the window, None where nobody knows yet."""
        inside = self.segments[self.num_outside :]
        return [0] * self.num_outside + [segment.num_apart or None for segment in inside]


@dataclass
class BatchPlan:
    """A prefill batch, in the order of SGLang's batch.

    Attributes:
        requests: One plan for each request.
        wants_queries: The policy looks at the queries of one that is scored.
        group_scores: Attention of the windows of those that are scored, filled layer by layer during the forward,
            float32 [num_layers, G, N]; None when no window observes.
        kv_indices: Slots of the live tokens of all requests, packed; set when the forward begins.
        slots: Of those that are scored, [N]; set when the forward begins.
        indptr: int32 [S + 1], their bounds in ``slots``.
        has_told_places: The side pools know which token of its screenshot every new slot holds.
    """

    requests: Sequence[RequestPlan]
    wants_queries: bool = True
    group_scores: torch.Tensor | None = None
    kv_indices: torch.Tensor | None = None
    slots: torch.Tensor | None = None
    indptr: torch.Tensor | None = None
    has_told_places: bool = False

    @cached_property
    def scored(self) -> Sequence[RequestPlan]:
        """The requests that are scored behind this forward, S of them: their prompts end, and there is room."""
        return [request for request in self.requests if request.layout.window and not request.left_whole]


def within_room(requests: Sequence[RequestPlan], room: int) -> list[RequestPlan]:
    """Leave prompts whole that cannot be scored beside those before them.

    A chunk of new tokens may bring many branches with long cached histories, and scoring takes memory for all of their
    live tokens. One that is left whole now is pruned behind its next turn.

    Args:
        requests: A batch, in its order.
        room: Live tokens for which there is memory.
    """
    fitting = []
    for request in requests:
        if request.layout.window:
            fits = request.layout.num_live <= room
            room -= request.layout.num_live if fits else 0
            request = request if fits else replace(request, left_whole=True)
        fitting.append(request)
    return fitting


def plan_request(
    tree: StarRadixCache,
    req: Req,
    path: Sequence[TreeNode],
    frames: Sequence[Frame],
    *,
    start: int,
    end: int,
    is_last_chunk: bool,
    observation_window: int,
    budget: float,
    peer_prefix_len: int,
    queries: Queries = Queries.WINDOW,
    image_window: ImageWindow = WHOLE_HISTORY,
    left_out: frozenset[int] = frozenset(),
) -> RequestPlan:
    """Plan one request.

    Args:
        tree: The tree.
        req: The request, prepared for its next forward.
        path: Nodes from the root's child down to the one that the request locks.
        frames: All screenshots of its prompt.
        start: Position of the first token that the forward computes.
        end: Position after the last.
        is_last_chunk: This forward ends the prompt.
        observation_window: Most queries that observe, where the window's do.
        budget: Share of the private visual tokens to keep.
        peer_prefix_len: Longest prefix in common with a request that waits or is in flight.
        queries: Whose attention the policy wants.
        image_window: Screenshots before it are dropped.
        left_out: First positions of screenshots that its client has left out: nothing of the budget is theirs.
    """
    in_tree = req.kv.cache_protected_len
    known = [segment for node in path for segment in tree.extra(node).segments]
    live = LiveIndex(known)
    num_live = live.before(end)
    shown = [frame for frame in frames if frame.start < end]
    wanted = end - shown[-1].end if shown and queries is Queries.AFTER_SCREENSHOT else observation_window
    window = min(max(wanted, 1), end - start) if is_last_chunk and shown else 0
    past_end = num_live - window
    spans = tuple(
        FrameSpan(min(live.before(f.start), past_end), min(live.before(min(f.end, end)), past_end), f.rows, f.cols)
        for f in shown
    )
    segments = _private_segments(tree, req, path, shown, end, peer_prefix_len) if window else ()
    segments = tuple(segment for segment in segments if segment.frame.start not in left_out)
    num_outside = image_window.num_outside([frame for frame in frames if frame.start not in left_out], segments)
    outside, inside = none_apart(segments[:num_outside]), segments[num_outside:]
    quota, quota_outside = visual_quota(inside, budget), visual_quota(outside, image_window.rest)
    return RequestPlan(
        req=req,
        layout=PromptLayout(num_live=num_live, window=window, frames=spans, num_frames_total=len(shown)),
        new_start=start,
        new_end=end,
        new_frames=tuple(f for f in shown if f.end > start),
        segments=segments,
        segment_starts=tuple(live.before(s.core_start) for s in segments),
        quota=quota,
        state=inherited_state(tree, path),
        budget=budget,
        stored_frames=stored_frames(shown, known, in_tree),
        uncut_frames=uncut_frames(shown, inside, quota, tree.page_size)
        & uncut_frames(shown, outside, quota_outside, tree.page_size),
        num_outside=num_outside,
        quota_outside=quota_outside,
    )


def _private_segments(
    tree: StarRadixCache, req: Req, path: Sequence[TreeNode], frames: Sequence[Frame], end: int, peer_prefix_len: int
) -> tuple[Segment, ...]:
    """Segments that may be pruned when the prompt is in the tree, those that it brings too."""
    in_tree = req.kv.cache_protected_len
    held = held_length(tree, RadixKey(req.get_fill_ids(), req.extra_key, cache_salt=req.cache_salt))
    # What the tree holds beyond this request's own path came from another one since it was matched.
    from_others = held if held > in_tree else 0
    private_from = max(tree.sharing.shared_until(path), peer_prefix_len, from_others)
    known = (segment for node in path for segment in tree.extra(node).segments)
    upcoming = segments_between(frames, in_tree, end // tree.page_size * tree.page_size, tree.page_size)
    return tuple(segment for segment in (*known, *upcoming) if segment.start >= private_from and segment.core_len)


def stored_frames(frames: Sequence[Frame], known: Sequence[Segment], in_tree: int) -> frozenset[int]:
    """Indices of the frames whose scores are all stored.

    Args:
        frames: Of a prompt.
        known: The segments of the tree's part of it.
        in_tree: Length of that part.
    """
    # Tokens outside of a core are never pruned, so that nobody asks for their scores.
    unscored = [segment for segment in known if segment.core_len and not segment.ident]
    return frozenset(
        index
        for index, frame in enumerate(frames)
        if frame.end <= in_tree
        and not any(segment.start < frame.end and segment.end > frame.start for segment in unscored)
    )


def equal_shares(segments: Sequence[Segment], quota: int, page_size: int) -> list[int]:
    """Tokens that each segment keeps when all keep the same share of theirs, and what is beside the budget; what
    rounding leaves is won by score.
    """
    total = sum(segment.core_len for segment in segments)
    shares = [quota * segment.core_len // total for segment in segments]
    return [min(n // page_size * page_size + s.num_apart, s.num_live) for n, s in zip(shares, segments, strict=True)]


def none_apart(segments: Sequence[Segment]) -> list[Segment]:
    """The segments with nothing beside the budget."""
    return [segment.with_apart(0) for segment in segments]


def uncut_frames(frames: Sequence[Frame], segments: Sequence[Segment], quota: int, page_size: int) -> frozenset[int]:
    """Indices of the frames no segment of which holds more than its equal share: whatever their scores, all stays."""
    shares = equal_shares(segments, quota, page_size)
    cut = {segment.frame.start for segment, share in zip(segments, shares, strict=True) if share < segment.num_live}
    return frozenset(index for index, frame in enumerate(frames) if frame.start not in cut)


def plan_decoding(req: Req, end: int, *, num_holes: int) -> RequestPlan:
    """Plan a request that decodes one token in a prefill batch: nothing of it is scored.

    Args:
        req: The request.
        end: Length of its row.
        num_holes: Holes of its row.
    """
    layout = PromptLayout(num_live=end - num_holes, window=0, frames=(), num_frames_total=0)
    return RequestPlan(req, layout, end - 1, end, (), (), (), 0, TrajectoryState(), 1.0)


def visual_quota(segments: Sequence[Segment], budget: float) -> int:
    """Core tokens that the segments may keep together: the budget of their visual tokens, less those outside cores."""
    visual = sum(s.end - s.start for s in segments)
    outside = sum(s.end - s.start - s.core_len for s in segments)
    return max(0, math.ceil(budget * visual) - outside)


def inherited_state(tree: StarRadixCache, path: Sequence[TreeNode]) -> TrajectoryState:
    """The state of the nearest prompt that ended on the path, or a new one: a fork inherits by construction."""
    for node in reversed(path):
        state = tree.extra(node).state
        if state is not None:
            return state
    return TrajectoryState()
