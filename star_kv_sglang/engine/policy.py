"""The policy in the scheduler process: one object that the tree, the attention backend and the hooks talk to."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from itertools import accumulate
from typing import TYPE_CHECKING, Any, TypedDict
from weakref import WeakKeyDictionary, WeakSet

import torch

from star_kv_sglang.cache.ledger import SegmentLedger
from star_kv_sglang.cache.radix_cache import CacheListener, StarRadixCache, Stored
from star_kv_sglang.cache.segments import Frame
from star_kv_sglang.cache.side_pools import SidePools
from star_kv_sglang.config import PolicyConfig
from star_kv_sglang.engine.choice import Choice, choose
from star_kv_sglang.engine.faults import FaultLog, committing
from star_kv_sglang.engine.frames import frames_of_request
from star_kv_sglang.engine.host_copy import HostCopy
from star_kv_sglang.engine.observer import Observer, rows_of
from star_kv_sglang.engine.plan import BatchPlan, RequestPlan, plan_decoding, plan_request
from star_kv_sglang.engine.prune import KVPools, prune_path
from star_kv_sglang.engine.ranges import measure_with, profiled, stage
from star_kv_sglang.engine.request_params import RequestParams
from star_kv_sglang.engine.row_holes import RowHoles
from star_kv_sglang.engine.sanity import without_nan
from star_kv_sglang.engine.stats import KeptByAge, PolicyCounters, RequestUse, report, tree_sizes
from star_kv_sglang.engine.trace import PruneTrace
from star_kv_sglang.engine.tree_budget import Cut, TreeBudget, TreeRules
from star_kv_sglang.engine.waiting import WaitingPrompts
from star_kv_sglang.errors import ConfigError
from star_kv_sglang.metrics.clock import StageClock
from star_kv_sglang.metrics.publisher import Publisher
from star_kv_sglang.policies import policy_class
from star_kv_sglang.policies.base.interface import Norms, Observation, PolicyScores, Queries, Split
from star_kv_sglang.triton_ops.dispatch import default_ops, get_ops

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import Req, ScheduleBatch
    from sglang.srt.managers.scheduler import Scheduler
    from sglang.srt.model_executor.model_runner import ModelRunner

logger = logging.getLogger(__name__)

META_INFO = "star_kv"
"""Key of a response's ``meta_info``."""
SLACK = 50
"""A step of the tree-wide budget leaves a 50th of it free, so that not every prompt needs one."""
SHRINK_STEP = 100
"""Least part of the pool that is freed at once when it runs short."""
MAX_WAITING = 256
"""Waiting requests that are looked at, from the front of the queue, for prefixes that several will use."""


FLOATS_PER_UNIT = 8
"""Values for each live token and unit that scoring holds at its peak beside the window's attention: offsets and norms
of the tokens, fused and calibrated scores, their order."""


class SidePoolKinds(TypedDict):
    """Which side pools there are, as `SidePools.allocate` takes them."""

    norm_dtype: torch.dtype
    units_per_layer: int
    with_attention: bool
    with_scores: bool


class PolicyEngine(CacheListener):
    """Plans, scores and prunes.

    Args:
        config: The policy's configuration.
    """

    def __init__(self, config: PolicyConfig) -> None:
        self.config = config
        self.policy = policy_class(config.policy)(config.settings)
        self.counters = PolicyCounters()
        self._faults = FaultLog(self.counters)
        self.observer: Observer | None = None
        self.ops = get_ops("reference")
        self.batch_holes: torch.Tensor | None = None
        self.ledger = SegmentLedger() if config.prunes_again else None
        self._budget: TreeBudget | None = None
        self._running: dict[str, Req] = {}
        self._row_holes = RowHoles()
        self._pools: KVPools | None = None
        self._tree: StarRadixCache | None = None
        self._scheduler: Scheduler | None = None
        self._merge_size = 1
        self._frames: WeakKeyDictionary[Req, tuple[Frame, ...]] = WeakKeyDictionary()
        self._in_flight: dict[str, Req] = {}
        self._waiting_prompts = WaitingPrompts()
        self._continued: WeakSet[Req] = WeakSet()
        self._choices: dict[str, Choice] = {}
        self._corrupt: dict[str, tuple[HostCopy, int]] = {}
        self._kept = KeptByAge()
        self._publisher: Publisher | None = None
        self._clock: StageClock | None = None
        self._trace = PruneTrace(config.trace_dir) if config.trace_dir else None

    @property
    def prunes(self) -> bool:
        """Whether this configuration ever frees a token; with budget 1.0 nothing is observed and nothing changes."""
        return self.config.prunes

    @property
    def _split(self) -> Split:
        """How a request's screenshots share its budget."""
        return Split(self.config.frame_split) if self.config.frame_split else self.policy.split

    # -- wiring ------------------------------------------------------------------------------------------------------

    def attach_model(self, runner: ModelRunner) -> None:
        """Take the model's pools and watch its layers; called by each attention backend that is built, done once."""
        if self._pools is not None:
            return
        config = runner.model_config.hf_config
        vision = getattr(config, "vision_config", None)
        if vision is None:
            logger.warning("the model has no vision tower: --kv-policy %s never prunes text", self.config.policy)
        else:
            self._merge_size = int(vision.spatial_merge_size)
        pool = runner.token_to_kv_pool
        layers = range(pool.start_layer, pool.start_layer + pool.layer_num)
        keys = [pool.get_key_buffer(layer) for layer in layers]
        values = [pool.get_value_buffer(layer) for layer in layers]
        self.ops = default_ops(keys[0].device)
        policy = self.policy
        kinds = self._side_pool_kinds(keys[0].dtype, num_groups=keys[0].shape[1])
        side = SidePools.allocate(len(keys), keys[0].shape[0], device=keys[0].device, **kinds)
        self._pools = KVPools(keys, values, side, per_head=policy.per_head)
        if self.ledger is not None:
            self.ledger.slot_ids = side.segment_ids
        self.observer = Observer(
            self._pools, self.config.scorer, self.ops, self._faults, queries=policy.queries, norms=policy.norms
        )
        if vision is not None and self.prunes and policy.norms is not Norms.NONE:
            self.observer.watch_layers(runner.model)
        tokens = self.config.token_budget
        logger.info(
            "KV policy %s: budget %s, observation window %d, side pools %.1f MiB",
            self.config.policy,
            f"{self.config.budget:.3g}" if tokens is None else f"{tokens} tokens",
            self.config.scorer.observation_window,
            side.num_bytes / 2**20,
        )

    def bytes_per_slot(self, num_layers: int, kv_dtype: torch.dtype, *, num_groups: int) -> int:
        """Memory that this policy takes beside K and V for each slot of the pool.

        Args:
            num_layers: Layers with K and V.
            kv_dtype: Of K and V.
            num_groups: Key heads of a layer.
        """
        return SidePools.bytes_per_slot(num_layers, **self._side_pool_kinds(kv_dtype, num_groups=num_groups))

    def workspace_bytes(self, num_layers: int, num_tokens: int, *, num_groups: int) -> int:
        """Memory that scoring takes at the end of a prefill, for prompts that have so many live tokens together.

        Args:
            num_layers: Layers with K and V.
            num_tokens: Live tokens of the batch.
            num_groups: Key heads of a layer.
        """
        if not self.prunes:
            return 0
        units = num_groups if self.policy.per_head else 1
        floats = num_groups + FLOATS_PER_UNIT * units
        return num_layers * num_tokens * floats * torch.float32.itemsize

    def _side_pool_kinds(self, kv_dtype: torch.dtype, *, num_groups: int) -> SidePoolKinds:
        policy = self.policy
        return {
            "norm_dtype": torch.float32 if kv_dtype == torch.float32 else torch.float16,
            "units_per_layer": num_groups if policy.per_head else 1,
            "with_attention": policy.queries is Queries.ALL and self.prunes,
            "with_scores": self.ledger is not None,
        }

    def attach_tree(self, tree: StarRadixCache) -> None:
        """Take the tree that this policy prunes."""
        self._tree = tree

    def attach_scheduler(self, scheduler: Scheduler) -> None:
        """Take the scheduler, whose waiting requests may share a prefix, and whose metrics ours stand beside."""
        self._scheduler = scheduler
        metrics = scheduler.metrics_collector_context
        if metrics.current_scheduler_metrics_enabled:
            numbers = (name for name in asdict(self.counters) if name.startswith("num_"))
            self._publisher = Publisher(metrics.collector.labels, numbers)
            self._kept.keeps_new = True
            on_gpu = self._require_pools().keys[0].is_cuda
            self._clock = StageClock(on_gpu=on_gpu, observe=self._publisher.observe_stage)
            measure_with(self._clock)

    def report(self) -> dict[str, Any]:
        """Census of the tree and counters, for the server's info page."""
        self._publish()
        times = None if self._clock is None else self._clock.totals
        return report(self._require_tree(), self.counters, self._kept, times)

    def _publish(self) -> None:
        if self._publisher is not None and self._clock is not None:
            with self._faults.guard("publishing metrics", "they are incomplete"):
                self._clock.collect()
                gauges = tree_sizes(self._require_tree(), self.counters)
                self._publisher.publish(gauges, asdict(self.counters), self._kept.take_new())

    # -- a prefill batch ---------------------------------------------------------------------------------------------

    def begin_batch(self, batch: ScheduleBatch) -> BatchPlan | None:
        """Note the batch's holes and, for a prefill, plan it, before its forward; None where nothing is scored."""
        if not self.prunes or self.observer is None:
            return None
        self.counters.peak_private_tokens = max(
            self.counters.peak_private_tokens, self._require_tree().sharing.private_size
        )
        plan = self._plan_batch(batch) if batch.forward_mode.is_extend() else None
        # Of every row that runs, planned for scoring or not: page tables follow from the holes alone.
        holes = self._row_holes.of(batch.req_pool_indices_cpu.tolist())
        self.batch_holes = torch.tensor(holes, dtype=torch.int64) if any(holes) else None
        self.observer.plan = plan
        return plan

    def end_batch(self, plan: BatchPlan | None) -> None:
        """The forward of the batch is queued: score what was observed and choose what each layer keeps."""
        self.batch_holes = None
        if plan is not None:
            self._finish_batch(plan)

    def _plan_batch(self, batch: ScheduleBatch) -> BatchPlan | None:
        decoding = set(batch.decoding_reqs or ())
        plans: list[RequestPlan] = []
        # The batch's rows and lengths, not the requests' own: a request that decodes in a mixed batch may have ended
        # with the step before, and its newest token is not known yet.
        rows, ends = batch.req_pool_indices_cpu.tolist(), batch.seq_lens_cpu.tolist()
        for req, row in zip(batch.reqs, rows, strict=True):
            if req not in decoding:
                self._note_in_flight(req)
                self._row_holes.tell(row, self._require_tree().num_holes(self._require_tree().path(req.last_node)))
        with self._faults.guard("planning a prefill", "its prompts stay unpruned"):
            for req, row, end, length in zip(batch.reqs, rows, ends, batch.extend_lens, strict=True):
                if req in decoding:
                    (num_holes,) = self._row_holes.of([row])
                    plans.append(plan_decoding(req, end, num_holes=num_holes))
                else:
                    plans.append(self._plan(req, end - length, end))
        if len(plans) < len(rows) or not any(plan.layout.frames for plan in plans):
            return None
        asked = any(plan.layout.window and self.policy.observes(plan.layout, plan.state) for plan in plans)
        return BatchPlan(plans, wants_queries=asked)

    def _finish_batch(self, plan: BatchPlan) -> None:
        if self.observer is not None:
            self.observer.plan = None
        if not plan.observed or plan.kv_indices is None or plan.kv_indptr is None:
            return
        with self._faults.guard("scoring a batch", "its prompts stay unpruned"):
            self._score(plan, plan.kv_indices, plan.kv_indptr)

    def _score(self, plan: BatchPlan, kv_indices: torch.Tensor, kv_indptr: torch.Tensor) -> None:
        with stage("fuse"):
            seen = self._observation(plan, kv_indices.long(), kv_indptr)
            scored, corrupt = without_nan(self.policy.score(seen), seen)
        with stage("store"):
            self._store_scores(plan, seen, scored)
        with stage("select"):
            if self.config.token_budget is not None:
                choices = [Choice((), 0, None, state) for state in scored.states]
            else:
                choices = choose(
                    plan,
                    scored,
                    split=self._split,
                    frame_floor=self.config.frame_floor,
                    page_size=self._require_tree().page_size,
                    ops=self.ops,
                )
        for index, (one, choice) in enumerate(zip(plan.requests, choices, strict=True)):
            if one.layout.window:
                self.counters.num_scored_prompts += 1
                self._choices[one.req.rid] = choice
                self._corrupt[one.req.rid] = corrupt, index

    def _observation(self, plan: BatchPlan, slots: torch.Tensor, kv_indptr: torch.Tensor) -> Observation:
        pools = self._require_pools()
        summed = pools.side.attention
        remembered, settled = set[tuple[int, int]](), set[tuple[int, int]]()
        for request, one in enumerate(plan.requests):
            known = one.remembered if self.policy.scores_once else frozenset()
            # A screenshot's first scores are stored, whether it loses something now or not.
            unread = one.settled & known if pools.side.scores is not None else one.settled
            remembered |= {(request, frame) for frame in known}
            settled |= {(request, frame) for frame in (unread if self._split is Split.BY_SIZE else ())}
        return Observation(
            layouts=[one.layout for one in plan.requests],
            states=[one.state for one in plan.requests],
            budgets=[one.budget for one in plan.requests],
            kv_indptr=kv_indptr,
            slots=slots,
            keys=pools.keys,
            values=pools.values,
            frame_offsets=pools.side.frame_offsets[:, slots],
            frame_norms=pools.side.frame_norms[:, slots].float(),
            attention=plan.group_scores if summed is None else summed[:, None, slots],
            ops=self.ops,
            remembered=remembered,
            settled=settled,
        )

    def _store_scores(self, plan: BatchPlan, seen: Observation, scored: PolicyScores) -> None:
        """Remember the score of each token of the prompts that were observed, so that it can be pruned again without a
        query.
        """
        side = self._require_pools().side
        if side.scores is None or side.segment_ids is None:
            return
        scores = self.policy.lasting(seen, scored)
        scores = torch.where(scores.isnan(), scored.calibrated, scores)
        slots = seen.slots
        ends = list(accumulate(one.layout.num_live for one in plan.requests))
        runs = [
            range(e - one.layout.num_live, e) for one, e in zip(plan.requests, ends, strict=True) if one.layout.window
        ]
        if len(runs) < len(ends):
            observed = rows_of(runs, slots.device)
            slots, scores = slots[observed], scores[:, observed]
        scores = scores.clamp(max=torch.finfo(torch.float16).max).to(torch.float16)
        if self.policy.scores_once:
            scores = torch.where(side.segment_ids[slots] == 0, scores, side.scores[:, slots])
        side.scores[:, slots] = scores

    def has_choice(self, batch: ScheduleBatch) -> bool:
        """Whether a request of the batch waits to be pruned."""
        return any(req.rid in self._choices for req in batch.reqs)

    def note_scheduled(self, batch: ScheduleBatch) -> None:
        """A batch will run next: its prompts no longer wait, and what they share with others must stay whole."""
        if self.prunes and batch.forward_mode.is_extend():
            decoding = set(batch.decoding_reqs or ())
            for req in batch.reqs:
                if req not in decoding:
                    self._note_in_flight(req)

    def _note_in_flight(self, req: Req) -> None:
        self._in_flight[req.rid] = req
        if req not in self._continued:  # a request that was put back and comes again continues its branch once
            self._continued.add(req)
            self._require_tree().sharing.continue_branch(req.last_node, len(req.origin_input_ids))

    def _plan(self, req: Req, start: int, end: int) -> RequestPlan:
        frames = self.frames_of(req)
        is_last_chunk = end == len(req.full_untruncated_fill_ids)
        return plan_request(
            self._require_tree(),
            req,
            frames,
            start=start,
            end=end,
            is_last_chunk=is_last_chunk,
            observation_window=self.config.scorer.observation_window,
            budget=self.budget_of(req),
            peer_prefix_len=self._peer_prefix_len(req) if frames and is_last_chunk else 0,
            queries=self.policy.queries,
        )

    def error_of(self, req: Req) -> str | None:
        """What is wrong with what a request says of itself, for its client; None where nothing is."""
        try:
            _wishes(req)
        except ConfigError as error:
            return str(error)
        return None

    def budget_of(self, req: Req) -> float:
        """Share of a request's private visual tokens that stay: its own ``kv_budget``, or the server's."""
        wanted = _wishes(req).budget
        return self.config.budget if wanted is None else wanted

    def _peer_prefix_len(self, req: Req) -> int:
        """Longest prefix that the request has in common with another one that waits or is in flight."""
        return self._waiting_prompts.shared_prefix_len(req, self._peers())

    def _peers(self) -> Iterable[Req]:
        yield from self._in_flight.values()
        if self._scheduler is not None:
            yield from self._scheduler.waiting_queue

    # -- what the tree tells -----------------------------------------------------------------------------------------

    def frames_of(self, req: Req) -> Sequence[Frame]:
        """The screenshots of a request; read once, as SGLang drops its inputs when it ends."""
        frames = self._frames.get(req)
        if frames is None:
            frames = ()
            with self._faults.guard("reading a request's screenshots", "it stays unpruned"):
                frames = frames_of_request(req, self._merge_size)
            self._frames[req] = frames
        return frames

    def on_stored(self, tree: StarRadixCache, stored: Stored) -> None:
        """Prune the private segments of a prompt that has just entered the tree, and tell its response about it."""
        tree.label_frames(stored.path, self.frames_of(stored.req))
        if not stored.ends_prompt:
            return
        self._prune_prompt(tree, stored)
        with self._faults.guard("telling a response what was kept", "it lacks it"):
            self._tell(tree, stored)
        self._publish()

    def _tell(self, tree: StarRadixCache, stored: Stored) -> None:
        req = stored.req
        if req.customized_info is None:
            req.customized_info = {}
        if META_INFO not in req.customized_info:
            use = RequestUse.of(tree, stored.path, len(req.origin_input_ids))
            # One entry for each output token: this one comes with the first.
            req.customized_info[META_INFO] = [asdict(use)]

    def _prune_prompt(self, tree: StarRadixCache, stored: Stored) -> None:
        req, has_row = stored.req, stored.has_row
        self._in_flight.pop(req.rid, None)
        # It asks for nothing but the cache: SGLang's prefix of ``n`` samples, or of a frontend's forks. They may come
        # one after the other, and the first would be taken for the only one.
        only_cached = req.sampling_params.max_new_tokens == 0
        if (only_cached or _wishes(req).share) and req.rid not in self._running:  # at its end it comes once more
            self._pin(tree, stored)
        if has_row:
            self._running[req.rid] = req
        choice = self._choices.pop(req.rid, None)
        if choice is None:
            return
        if only_cached or not stored.path:
            self._corrupt.pop(req.rid)
        else:
            self._note_state(tree, req, choice)
            with self._faults.guard("pruning a prompt", "it stays unpruned"):
                self._prune(tree, stored, choice)
            # The ledger and the marks of slots say the same or nothing.
            with stage("register"), committing():
                tree.register_path(stored.path)
            with self._faults.guard("counting what was kept", "its figures are incomplete"):
                self._kept.note(tree, stored.path, self.frames_of(req))
        if not self._choices:
            # The step after a prefill that was scored waits for its result: no row of a running request is in use.
            self._hold_token_budget(tuple(self._running.values()))

    def _pin(self, tree: StarRadixCache, stored: Stored) -> None:
        """Keep the prompt's path whole, unless all that is kept so would be too much of the pool."""
        counters, share = self.counters, self.config.pinned_share
        if tree.sharing.pin(stored.path, at_most=int(share * tree.token_to_kv_pool_allocator.size)):
            counters.num_pins += 1
            return
        if not counters.num_refused_pins:
            logger.warning(
                "request %s: its prefix is pruned like any other, as what requests have asked to keep whole may hold "
                "%g of the pool (pinned_share in --kv-policy-config). Further cases are only counted.",
                stored.req.rid, share,
            )  # fmt: skip
        counters.num_refused_pins += 1

    def _note_state(self, tree: StarRadixCache, req: Req, choice: Choice) -> None:
        """Store the state that the prompt leaves behind, unless it comes from scores that are no numbers."""
        flags, index = self._corrupt.pop(req.rid)
        with profiled("state"):
            is_corrupt = bool(flags.wait()[index])
        if not is_corrupt:
            tree.extra(req.last_node).state = choice.state
            return
        if not self.counters.num_recency_fallbacks:
            logger.warning(
                "request %s: its scores are not a number; its newest tokens are kept, and what is known of its "
                "trajectory stays as it was. Further cases are only counted.", req.rid,
            )  # fmt: skip
        self.counters.num_recency_fallbacks += 1

    def _prune(self, tree: StarRadixCache, stored: Stored, choice: Choice) -> None:
        req = stored.req
        private_from = max(tree.sharing.shared_until(stored.path), self._peer_prefix_len(req))
        with stage("prune"):
            pruned = prune_path(tree, stored, choice.kept(), self._require_pools(), self.ops, private_from=private_from)
        self.counters.num_skipped_segments += pruned.num_skipped
        if pruned.num_freed:
            if stored.has_row:
                self._row_holes.add(req.kv.req_pool_idx, pruned.num_freed)
            self.counters.num_prunes += 1
            self.counters.num_pruned_tokens += pruned.num_freed
        if self._trace is not None and _wishes(req).trace:
            side = self._require_pools().side
            with self._faults.guard("writing a trace", "it is incomplete"):
                for segment, slots in pruned.segments:
                    self._trace.write(req, self.frames_of(req), segment, side, slots, self.budget_of(req))

    def on_released(self, req: Req) -> None:
        """Forget a request that ended or was put back."""
        self._in_flight.pop(req.rid, None)
        self._running.pop(req.rid, None)
        self._choices.pop(req.rid, None)
        self._corrupt.pop(req.rid, None)
        if next(iter(self._peers()), None) is None:  # Nobody may ask again for long.
            self._waiting_prompts.clear()
        self._hold_token_budget(())
        self._publish()

    def _hold_token_budget(self, running: Sequence[Req]) -> None:
        """Bring the private nodes below the tree-wide budget, if they are above it.

        Args:
            running: Requests whose rows may change now.
        """
        limit, tree = self.config.token_budget, self._require_tree()
        if limit is None or tree.sharing.private_size <= limit:
            return
        target, cut = limit - limit // SLACK, Cut()
        with stage("budget"), self._faults.guard("cutting to the token budget", "leaves are dropped instead"):
            cut = self._tree_budget().reduce_private(target, running=running, waiting=self._waiting())
        for req, num_holes in cut.holes:
            self._row_holes.add(req.kv.req_pool_idx, num_holes)
        counters = self.counters
        counters.num_budget_steps += 1
        counters.num_pruned_tokens += cut.num_freed
        if tree.sharing.private_size > limit:
            with stage("budget"):
                counters.num_budget_evicted_tokens += tree.eviction.drop_leaves(
                    tree.sharing.private_size - target, private_only=True
                )
        counters.num_budget_misses += tree.sharing.private_size > limit

    def shrink(self, tree: StarRadixCache, num_tokens: int, *, rank: Any) -> int:
        """Prune what no request holds and does not rank higher, down to the floors, before leaves are dropped."""
        if self.ledger is None or not self.config.shrink_before_evict or num_tokens <= 0:
            return 0
        wanted = max(num_tokens, tree.token_to_kv_pool_allocator.size // SHRINK_STEP)
        cut = Cut()
        with stage("shrink"), self._faults.guard("shrinking before eviction", "leaves are dropped instead"):
            cut = self._tree_budget().shrink_unused(wanted, waiting=self._waiting(), rank=rank)
        counters = self.counters
        counters.num_shrinks += cut.num_freed > 0
        counters.num_shrunk_tokens += cut.num_freed
        counters.num_avoided_evictions += cut.num_freed >= num_tokens
        return cut.num_freed

    def _waiting(self) -> Sequence[Req]:
        return () if self._scheduler is None else self._scheduler.waiting_queue[:MAX_WAITING]

    def _tree_budget(self) -> TreeBudget:
        if self._budget is None:
            config = self.config
            rules = TreeRules(
                config.frame_floor, config.branch_floor, config.recency_weight, current_last=config.current_last
            )
            self._budget = TreeBudget(self._require_tree(), self._require_pools(), self.ops, rules)
        return self._budget

    def _require_tree(self) -> StarRadixCache:
        if self._tree is None:
            raise RuntimeError("the policy was used before its tree was built")
        return self._tree

    def _require_pools(self) -> KVPools:
        if self._pools is None:
            raise RuntimeError("the policy was used before an attention backend was built")
        return self._pools


def _wishes(req: Req) -> RequestParams:
    """What a request says of itself; whoever says something wrong was refused before it was queued."""
    return RequestParams.of(req.sampling_params.custom_params)
