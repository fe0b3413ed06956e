"""A prefill of two requests on paper: queries, keys, values and layer inputs, watched as in the engine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch

from star_kv_sglang.algorithm.layout import FrameSpan, PromptLayout
from star_kv_sglang.algorithm.params import ScorerParams
from star_kv_sglang.algorithm.state import TrajectoryState
from star_kv_sglang.cache.segments import Frame, Segment
from star_kv_sglang.cache.side_pools import SidePools
from star_kv_sglang.engine.choice import choose
from star_kv_sglang.engine.compaction import KVPools
from star_kv_sglang.engine.faults import FaultLog
from star_kv_sglang.engine.observer import Observer
from star_kv_sglang.engine.plan import BatchPlan, RequestPlan, visual_quota
from star_kv_sglang.engine.sinks import set_apart
from star_kv_sglang.engine.stats import PolicyCounters
from star_kv_sglang.policies import policy_class, policy_keys, policy_params
from star_kv_sglang.policies.base.interface import KVPolicy, Observation, Queries
from star_kv_sglang.triton_ops.dispatch import get_ops

NUM_LAYERS, NUM_HEADS, NUM_GROUPS, HEAD_DIM, HIDDEN = 3, 6, 2, 36, 10
SM_SCALE = HEAD_DIM**-0.5
BUDGET = 0.3
PARAMS = ScorerParams(observation_window=4)


@dataclass(frozen=True)
class Prompt:
    """One request: screenshots as (start, rows, cols), and its length. All of it is new."""

    frames: tuple[tuple[int, int, int], ...]
    length: int

    @property
    def spans(self) -> list[tuple[int, int]]:
        return [(start, start + rows * cols) for start, rows, cols in self.frames]


# The newest screenshot of the first has more columns than position bins, so that heads differ in what they tell.
PROMPTS = (Prompt(((3, 3, 4), (19, 2, 7), (36, 2, 15)), 73), Prompt(((2, 5, 2),), 19))


@dataclass(frozen=True)
class Prefill:
    """What ran: packed over the requests, one entry for each layer."""

    query: torch.Tensor  # [L, N, H, D]
    key: torch.Tensor  # [L, N, G, D]
    value: torch.Tensor  # [L, N, G, D]
    hidden: torch.Tensor  # [L, N, C]
    before_norm: torch.Tensor  # [L, N, C], the same before the input norm
    slots: torch.Tensor  # [N]

    @classmethod
    def random(cls, seed: int) -> Prefill:
        generator = torch.Generator().manual_seed(seed)
        num = sum(prompt.length for prompt in PROMPTS)

        def normal(*shape: int) -> torch.Tensor:
            return torch.randn(NUM_LAYERS, num, *shape, generator=generator)

        slots = torch.randperm(2 * num, generator=generator)[:num] + 1
        query, key = normal(NUM_HEADS, HEAD_DIM) * 2, normal(NUM_GROUPS, HEAD_DIM)
        value, hidden = normal(NUM_GROUPS, HEAD_DIM), normal(HIDDEN)
        return cls(query, key, value, hidden, hidden, slots)


def window_of(policy: KVPolicy[Any], prompt: Prompt) -> int:
    """Observing queries of a prompt."""
    if policy.queries is Queries.AFTER_SCREENSHOT:
        return prompt.length - prompt.spans[-1][1]
    return PARAMS.observation_window


def make_policy(name: str, **settings: Any) -> KVPolicy[Any]:
    """A policy with the window and the seed of these tests, where it has them."""
    given = {"observation_window": PARAMS.observation_window, "seed": 5}
    known = {key: value for key, value in given.items() if key in policy_keys(name)}
    return policy_class(name)(policy_params(name, {**known, **settings}))


def chosen_by_engine(name: str, run: Prefill, chunk: int | None = None, **settings: Any) -> list[list[list[list[int]]]]:
    """Positions that stay, [request][screenshot][unit], by the engine's observer, policy and choice.

    Args:
        name: The policy.
        run: What ran.
        chunk: For `Queries.ALL`: the first request's first ``chunk`` tokens run in a forward of their own.
        settings: Of the policy, besides the window and the seed.
    """
    policy = make_policy(name, **settings)
    plan, seen = watched(policy, run, chunk)
    scored = set_apart(policy.score(seen), seen, keeps=policy.keeps_sinks)
    choices = choose(plan, scored, split=policy.split, frame_floor=0.02, page_size=1, ops=seen.ops)
    return [
        [
            [sorted(segment.start + i for i in unit.tolist()) for unit in kept.chosen]
            for segment, kept in zip(choice.segments, choice.kept(), strict=True)
        ]
        for choice in choices
    ]


def pools_of(policy: KVPolicy[Any], run: Prefill) -> KVPools:
    """Pools that hold the prefill's keys and values, and what the policy wants recorded."""
    num_slots = int(run.slots.max()) + 1
    keys, values = torch.zeros(2, NUM_LAYERS, num_slots, NUM_GROUPS, HEAD_DIM)
    keys[:, run.slots], values[:, run.slots] = run.key, run.value
    side = SidePools.allocate(
        NUM_LAYERS,
        num_slots,
        norm_dtype=torch.float32,
        device="cpu",
        units_per_layer=NUM_GROUPS if policy.per_head else 1,
        with_attention=policy.queries is Queries.ALL,
    )
    return KVPools(list(keys), list(values), side, per_head=policy.per_head)


def watched(policy: KVPolicy[Any], run: Prefill, chunk: int | None = None) -> tuple[BatchPlan, Observation]:
    """What a policy is told of the prefill."""
    ops, pools = get_ops("reference"), pools_of(policy, run)
    side, faults = pools.side, FaultLog(PolicyCounters())
    observer = Observer(
        pools,
        policy.pool_width,
        ops,
        faults,
        queries=policy.queries,
        norms=policy.norms,
        sink_ratio=policy.sink_ratio,
    )
    plans, first = [], 0
    if chunk is not None:
        observe(observer, BatchPlan([planned(PROMPTS[0], 0, 0, chunk)]), run, torch.arange(chunk), run.slots[:chunk])
    for number, prompt in enumerate(PROMPTS):
        start = chunk if chunk is not None and number == 0 else 0
        plans.append(planned(prompt, window_of(policy, prompt), start, prompt.length))
    plan = BatchPlan(plans, wants_queries=any(policy.observes(one.layout, one.state) for one in plans))
    rows = []
    for one in plans:
        rows.append(torch.arange(first + one.new_start, first + one.new_end))
        first += one.new_end
    observe(observer, plan, run, torch.cat(rows), run.slots)
    summed, norms = side.attention, side.frame_norms[:, run.slots]
    sinks = None if policy.sink_ratio is None else norms.isinf()
    assert plan.indptr is not None
    seen = Observation(
        layouts=[one.layout for one in plans],
        states=[one.state for one in plans],
        budgets=[one.budget for one in plans],
        kv_indptr=plan.indptr,
        slots=run.slots,
        keys=pools.keys,
        values=pools.values,
        frame_offsets=side.frame_offsets[:, run.slots],
        frame_norms=norms if sinks is None else norms.masked_fill(sinks, 0.0),
        sinks=sinks,
        attention=plan.group_scores if summed is None else summed[:, None, run.slots],
        ops=ops,
        wants_storing=True,
    )
    return plan, seen


def planned(prompt: Prompt, window: int, start: int, end: int) -> RequestPlan:
    """The plan of a request whose tokens are all live."""
    shown = [frame for frame in prompt.frames if frame[0] < end]
    frames = [Frame(first, rows, cols, image_hash=first) for first, rows, cols in shown]
    spans = tuple(FrameSpan(f.start, min(f.end, end), f.rows, f.cols) for f in frames)
    segments = tuple(Segment.unpruned(f, f.start, f.end, 1) for f in frames) if window else ()
    return RequestPlan(
        req=cast(Any, None),
        layout=PromptLayout(num_live=end, window=window, frames=spans, num_frames_total=len(frames)),
        new_start=start,
        new_end=end,
        new_frames=tuple(f for f in frames if f.end > start),
        segments=segments,
        segment_starts=tuple(s.core_start for s in segments),
        quota=visual_quota(segments, BUDGET),
        state=TrajectoryState(),
        budget=BUDGET,
    )


def observe(observer: Observer, plan: BatchPlan, run: Prefill, rows: torch.Tensor, live: torch.Tensor) -> None:
    """One forward: ``rows`` are computed, ``live`` are the slots of all live tokens."""
    indptr = [0]
    for one in plan.requests:
        indptr.append(indptr[-1] + one.layout.num_live)
    observer.plan = plan
    observer.begin(run.slots[rows], live, torch.tensor(indptr, dtype=torch.int32))
    for layer in range(NUM_LAYERS):
        observer.observe_inputs(layer, run.before_norm[layer, rows])
        observer.observe_norms(layer, run.hidden[layer, rows])
        observer.observe_queries(layer, run.query[layer, rows], SM_SCALE)
    observer.end()
