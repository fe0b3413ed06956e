"""A prefill batch: planned on the host before its forward, scored and chosen for behind it, on the same stream."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from star_kv_sglang.engine.choice import Choice, choose
from star_kv_sglang.engine.context import EngineContext
from star_kv_sglang.engine.plan import BatchPlan, RequestPlan, plan_decoding, plan_request, within_room
from star_kv_sglang.engine.ranges import stage
from star_kv_sglang.engine.ranks import Agreement
from star_kv_sglang.engine.records import Requests, ScoredPrompt
from star_kv_sglang.engine.sanity import without_nan
from star_kv_sglang.engine.sharing import PromptSharing
from star_kv_sglang.engine.sinks import set_apart
from star_kv_sglang.policies.base.interface import Observation, PolicyScores, Split

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sglang.srt.managers.schedule_batch import Req, ScheduleBatch
    from sglang.srt.mem_cache.radix_cache import TreeNode


class Scoring:
    """Decides for every prompt of a batch what each layer keeps of it.

    Args:
        context: What the engine's parts share.
        requests: Take what was decided.
        sharing: What other requests will use stays whole.
    """

    def __init__(self, context: EngineContext, requests: Requests, sharing: PromptSharing) -> None:
        config, self._policy = context.config, context.policy
        self._context = context
        self._config = config
        self._parts = context.parts
        self._tree = context.tree
        self._rows = context.rows
        self._counters = context.counters
        self._faults = context.faults
        self._requests = requests
        self._sharing = sharing
        self._split = Split(config.frame_split) if config.frame_split else self._policy.split

    def begin(self, batch: ScheduleBatch) -> BatchPlan | None:
        """Note the batch's holes and, for a prefill, plan it, before its forward; None where nothing is scored."""
        plan = self._plan(batch) if batch.forward_mode.is_extend() else None
        # Of every row that runs, planned for scoring or not: page tables follow from the holes alone.
        holes = self._rows.of(batch.req_pool_indices_cpu.tolist())
        self._parts.batch_holes = torch.tensor(holes, dtype=torch.int64) if any(holes) else None
        self._parts.observer.plan = plan
        return plan

    def end(self, plan: BatchPlan | None) -> None:
        """The forward of the batch is queued: score what was observed and choose what each layer keeps."""
        self._parts.batch_holes = None
        if plan is None:
            return
        self._parts.observer.end()
        for request in plan.requests:
            # Observing may have broken off in a layer: then what the others were given is not known.
            if request.new_frames and plan.has_told_places and plan.kv_indices is not None:
                self._requests.of(request.req).placed_from = request.new_start
        if not plan.scored or plan.kv_indices is None or plan.slots is None or plan.indptr is None:
            return
        with self._faults.guard("scoring a batch", "its prompts stay unpruned"):
            self._score(plan, plan.slots.long(), plan.indptr)

    def _plan(self, batch: ScheduleBatch) -> BatchPlan | None:
        decoding = set(batch.decoding_reqs or ())
        # The batch's rows and lengths, not the requests' own: a request that decodes in a mixed batch may have ended
        # with the step before, and its newest token is not known yet.
        rows, ends = batch.req_pool_indices_cpu.tolist(), batch.seq_lens_cpu.tolist()
        paths: dict[Req, list[TreeNode]] = {}
        for req, row, end, length in zip(batch.reqs, rows, ends, batch.extend_lens, strict=True):
            if req not in decoding:
                record = self._sharing.scheduled(req)
                record.placed_from = None
                record.computed.begins(end - length, end, self._tree.prune_time)
                paths[req] = self._tree.path(req.last_node)
                self._rows.tell(row, self._tree.num_holes(paths[req]))
            else:
                self._requests.of(req).computed.end = end
        plans: list[RequestPlan] = []
        with self._faults.guard("planning a prefill", "its prompts stay unpruned"):
            for req, row, end, length in zip(batch.reqs, rows, ends, batch.extend_lens, strict=True):
                if req in decoding:
                    (num_holes,) = self._rows.of([row])
                    plans.append(plan_decoding(req, end, num_holes=num_holes))
                else:
                    plans.append(self._plan_request(req, paths[req], end - length, end))
        if len(plans) < len(rows) or not any(plan.layout.frames for plan in plans):
            return None
        plan = BatchPlan(within_room(plans, self._context.room))
        for request in plan.requests:
            if request.left_whole:
                self._counters.num_prompts_left_whole += 1
                shown = replace(request.state, num_frames=request.layout.num_frames_total)
                self._requests.of(request.req).left_whole = shown
        plan.wants_queries = any(self._policy.observes(request.layout, request.state) for request in plan.scored)
        return plan

    def _plan_request(self, req: Req, path: list[TreeNode], start: int, end: int) -> RequestPlan:
        record = self._requests.of(req)
        is_last_chunk = end == len(req.full_untruncated_fill_ids)
        return plan_request(
            self._tree,
            req,
            path,
            record.frames,
            start=start,
            end=end,
            is_last_chunk=is_last_chunk,
            observation_window=self._policy.observation_window,
            budget=self._context.budget_of(record.params),
            peer_prefix_len=self._sharing.peer_prefix_len(req) if record.frames and is_last_chunk else 0,
            queries=self._policy.queries,
            image_window=self._context.window_of(record.params),
            left_out=record.left_out,
        )

    def _score(self, plan: BatchPlan, slots: torch.Tensor, indptr: torch.Tensor) -> None:
        with stage("fuse"):
            seen = self._observation(plan, slots, indptr)
            scored, corrupt = without_nan(self._policy.score(seen), seen)
            scored = set_apart(scored, seen, keeps=self._policy.keeps_sinks)
        with stage("store"):
            self._store_scores(seen, scored)
        with stage("select"):
            # The tree's budget is held later, over all branches; what is outside of a window goes at once.
            if self._config.token_budget is not None and not any(request.num_outside for request in plan.scored):
                choices = [Choice((), 0, None, state) for state in scored.states]
            else:
                choices = choose(
                    plan,
                    # Who asks for equal shares gets them.
                    scored if self._config.frame_split is None else replace(scored, floors=None),
                    split=self._split,
                    frame_floor=self._config.frame_floor,
                    page_size=self._tree.page_size,
                    ops=self._parts.ops,
                )
        self._counters.num_scored_prompts += len(choices)
        with stage("agree"):
            agreement = self._agreement(plan, scored, choices)
        for index, (request, choice) in enumerate(zip(plan.scored, choices, strict=True)):
            self._requests.set_scored(request.req, ScoredPrompt(choice, corrupt, index, agreement))

    def _agreement(self, plan: BatchPlan, scored: PolicyScores, choices: Sequence[Choice]) -> Agreement | None:
        ranks = self._parts.ranks
        if ranks.size == 1:
            return None
        ranking = choices[0].ranking
        # Where a token budget decides later, scores are what it decides by.
        decided = [scored.calibrated] if ranking is None else [ranking.best, ranking.num_kept]
        turn = f"request {', '.join(request.req.rid for request in plan.scored)}"
        return ranks.agree(decided, self._tree.cut_sum, turn)

    def _observation(self, plan: BatchPlan, slots: torch.Tensor, indptr: torch.Tensor) -> Observation:
        pools = self._parts.pools
        ranks, summed = self._parts.ranks, pools.side.attention
        attention = None if plan.group_scores is None else ranks.all_groups(plan.group_scores)
        if summed is not None:
            attention = ranks.mean(summed[:, None, slots])
        wants_storing = pools.side.scores is not None
        skip_scoring, skip_storing = set[tuple[int, int]](), set[tuple[int, int]]()
        for index, request in enumerate(plan.scored):
            stored = request.stored_frames if self._policy.scores_once else frozenset()
            # A screenshot's first scores are stored, whether it loses something now or not.
            unread = request.uncut_frames & stored if wants_storing else request.uncut_frames
            skip_storing |= {(index, frame) for frame in stored}
            skip_scoring |= {(index, frame) for frame in (unread if self._split is Split.BY_SIZE else ())}
        norm_pool, offset_pool, sinks = pools.side.frame_norms, pools.side.frame_offsets, None
        if self._policy.sink_ratio is None:
            norms, offsets = norm_pool[:, slots].float(), offset_pool[:, slots]
        else:
            norms, sinks, offsets = self._parts.ops.gather_frames(norm_pool, offset_pool, slots)
        return Observation(
            layouts=[request.layout for request in plan.scored],
            states=[request.state for request in plan.scored],
            budgets=[request.budget for request in plan.scored],
            kv_indptr=indptr,
            slots=slots,
            keys=pools.keys,
            values=pools.values,
            frame_offsets=offsets,
            frame_norms=norms,
            sinks=sinks,
            attention=attention,
            all_groups=ranks.all_groups,
            ops=self._parts.ops,
            skip_scoring=skip_scoring,
            skip_storing=skip_storing,
            wants_storing=wants_storing,
            split=self._split,
        )

    def _store_scores(self, seen: Observation, scored: PolicyScores) -> None:
        """Remember the score of each token of the prompts that were observed, so that it can be pruned again without a
        query.
        """
        side = self._parts.pools.side
        if side.scores is None or side.segment_ids is None:
            return
        ids = side.segment_ids if self._policy.scores_once else None
        self._parts.ops.keep_scores(scored.calibrated, scored.for_pruning_again, seen.slots, ids, side.scores)
