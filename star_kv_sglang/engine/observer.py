"""Watches a prefill's forward: every layer's queries and the norms of its visual tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import torch

from star_kv_sglang.engine.accumulate import add_attention
from star_kv_sglang.engine.compaction import KVPools
from star_kv_sglang.engine.faults import FaultLog
from star_kv_sglang.engine.plan import BatchPlan
from star_kv_sglang.engine.ranges import stage
from star_kv_sglang.engine.sinks import SinkWatch
from star_kv_sglang.policies.base.interface import Norms, Queries

if TYPE_CHECKING:
    from torch import nn

    from star_kv_sglang.cache.segments import Segment
    from star_kv_sglang.triton_ops.dispatch import Ops


Rows = slice | torch.Tensor
"""Rows of a packed batch: a slice where they follow each other, so that taking them copies nothing."""


def rows_of(runs: Sequence[range], device: torch.device) -> Rows:
    """The rows of all runs, in order.

    Args:
        runs: At least one, each of step 1.
        device: Of an index tensor, where one is needed.
    """
    if len(runs) == 1:
        return slice(runs[0].start, runs[0].stop)
    return torch.cat([torch.arange(run.start, run.stop) for run in runs]).to(device, non_blocking=True)


def _of_the_scored(
    plan: BatchPlan, kv_indices: torch.Tensor, kv_indptr: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Slots and bounds of the requests that are scored; what was given where all are."""
    if len(plan.scored) == len(plan.requests):
        return kv_indices, kv_indptr
    if not plan.scored:
        return kv_indices[:0], kv_indptr[:1]
    ends = list(accumulate(request.layout.num_live for request in plan.requests))
    runs = [
        range(end - request.layout.num_live, end)
        for request, end in zip(plan.requests, ends, strict=True)
        if request.layout.window and not request.left_whole
    ]
    bounds = list(accumulate((len(run) for run in runs), initial=0))
    indptr = torch.tensor(bounds, dtype=torch.int32).to(kv_indptr.device, non_blocking=True)
    return kv_indices[rows_of(runs, kv_indices.device)], indptr


class Observer:
    """Collects what the scorer needs while the model runs.

    Args:
        pools: K and the side pools.
        pool_width: Width of the average pooling of attention over tokens.
        ops: Kernels or references.
        faults: What fails here costs the batch its scores; the forward goes on.
        queries: Whose attention is wanted.
        norms: What is recorded of the layers' inputs.
        sink_ratio: Norm of a sink's layer input, over the median of its screenshot; None: nobody looks for sinks.
    """

    def __init__(
        self,
        pools: KVPools,
        pool_width: int,
        ops: Ops,
        faults: FaultLog,
        *,
        queries: Queries = Queries.WINDOW,
        norms: Norms = Norms.INPUT,
        sink_ratio: float | None = None,
    ) -> None:
        self.ops = ops
        self.plan: BatchPlan | None = None
        self._faults = faults
        self._pools = pools
        self._pool_width = pool_width
        self._queries = queries
        self._norms = norms
        self._sinks = None if sink_ratio is None else SinkWatch(sink_ratio, len(pools.keys), ops)
        self._frame_sizes: list[int] = []
        self._visual_rows: Rows | None = None
        self._visual_slots: torch.Tensor | None = None
        self._centre_ids: torch.Tensor | None = None
        self._frame_indptr: torch.Tensor | None = None
        self._window_rows: Rows | None = None
        self._query_indptr: torch.Tensor | None = None

    def watch_layers(self, model: nn.Module) -> None:
        """Hook the attention module of every decoder layer, and its input norm where sinks are looked for.

        Works for every model whose layer calls ``self_attn(positions=..., hidden_states=..., forward_batch=...)``
        after its ``input_layernorm``, and whose attention ends in SGLang's RadixAttention: Qwen2-VL, Qwen2.5-VL,
        Qwen3-VL.

        Raises:
            RuntimeError: Sinks are looked for, and a layer has no ``input_layernorm``.
        """
        from sglang.srt.layers.radix_attention import RadixAttention

        for block in model.modules():
            for module in block.children():
                for layer in module.children():
                    if isinstance(layer, RadixAttention):
                        module.register_forward_pre_hook(_norm_hook(self, layer.layer_id), with_kwargs=True)
                        if self._sinks is not None:
                            _input_norm(block).register_forward_hook(_input_hook(self, layer.layer_id))

    def begin(self, out_cache_loc: torch.Tensor, kv_indices: torch.Tensor, kv_indptr: torch.Tensor) -> None:
        """The forward of the planned batch begins.

        Args:
            out_cache_loc: Slots of the new tokens of all requests, packed.
            kv_indices: Slots of the live tokens of all requests, packed, [N].
            kv_indptr: int32 [R + 1].
        """
        if self.plan is not None:
            with self._observing(self.plan), stage("begin"):
                self._begin(self.plan, out_cache_loc, kv_indices, kv_indptr)

    @contextmanager
    def _observing(self, plan: BatchPlan) -> Iterator[None]:
        """What fails in the block ends the observation of this forward, and not the forward."""
        with self._faults.guard("observing a prefill", "its prompts stay unpruned"):
            try:
                yield
            except Exception:
                self.plan = plan.kv_indices = None
                raise

    def _begin(
        self, plan: BatchPlan, out_cache_loc: torch.Tensor, kv_indices: torch.Tensor, kv_indptr: torch.Tensor
    ) -> None:
        device = out_cache_loc.device
        self._note_visual_tokens(plan, out_cache_loc)
        plan.has_told_places = True
        if self._pools.side.attention is not None:
            self._pools.side.attention[:, out_cache_loc.long()] = 0
        plan.kv_indices = kv_indices
        plan.slots, plan.indptr = _of_the_scored(plan, kv_indices, kv_indptr)
        if not plan.scored or not plan.wants_queries:
            return
        if self._queries not in (Queries.WINDOW, Queries.AFTER_SCREENSHOT):
            return
        num_groups = self._pools.keys[0].shape[1]
        plan.group_scores = torch.empty(
            (len(self._pools.keys), num_groups, len(plan.slots)), dtype=torch.float32, device=device
        )
        runs, indptr, first = [], [0], 0
        for request in plan.requests:
            last = first + request.new_end - request.new_start
            if request.layout.window and not request.left_whole:
                runs.append(range(last - request.layout.window, last))
                indptr.append(indptr[-1] + request.layout.window)
            first = last
        self._window_rows = rows_of(runs, device)
        self._query_indptr = torch.tensor(indptr, dtype=torch.int32).to(device, non_blocking=True)

    def _note_visual_tokens(self, plan: BatchPlan, out_cache_loc: torch.Tensor) -> None:
        """Record which token of its screenshot every new slot holds."""
        runs, offsets, first = [], [], 0
        self._frame_sizes = []
        for request in plan.requests:
            for frame in request.new_frames:
                start, end = max(frame.start, request.new_start), min(frame.end, request.new_end)
                runs.append(range(first + start - request.new_start, first + end - request.new_start))
                self._frame_sizes.append(end - start)
                offsets.append(torch.arange(start - frame.start, end - frame.start, dtype=torch.int16))
            first += request.new_end - request.new_start
        device = out_cache_loc.device
        self._visual_rows = rows_of(runs, device) if runs else None
        # Those of a forward whose observation broke off may be another prompt's by now.
        self._visual_slots = None
        self._centre_ids = self._frame_indptr = None
        if runs and self._norms is Norms.CENTRED:
            sizes = torch.tensor(self._frame_sizes)
            self._frame_indptr = torch.cat([sizes.new_zeros(1), sizes.cumsum(0)]).int().to(device, non_blocking=True)
            centre_ids = torch.arange(len(runs), dtype=torch.int32).repeat_interleave(sizes)
            self._centre_ids = centre_ids.to(device, non_blocking=True)
            if self._sinks is not None:
                self._sinks.begin(self._frame_sizes, self._frame_indptr)
        if self._visual_rows is not None:
            self._visual_slots = out_cache_loc[self._visual_rows].long()
            self._pools.side.frame_offsets[:, self._visual_slots] = torch.cat(offsets).to(device, non_blocking=True)

    def tell_places(self, slots: torch.Tensor, segment: Segment) -> None:
        """Record which tokens of its screenshot the slots of a segment hold that no forward has told.

        Their norms are not known: how they are ranked among each other says nothing.

        Args:
            slots: int64, of the whole segment, which has lost nothing.
            segment: The segment.
        """
        first = segment.start - segment.frame.start
        offsets = torch.arange(first, first + segment.end - segment.start, dtype=torch.int16)
        self._pools.side.frame_offsets[:, slots] = offsets.to(slots.device, non_blocking=True)
        # What lay there before may have been a sink.
        self._pools.side.frame_norms[:, slots] = 0.0

    def observe_inputs(self, layer: int, inputs: torch.Tensor) -> None:
        """Look for sinks in a layer's input, where they are looked for.

        Args:
            layer: Index of the layer.
            inputs: [num_new_tokens, C], before the input norm.
        """
        sinks, rows = self._sinks, self._visual_rows
        if self.plan is not None and sinks is not None and rows is not None and sinks.looks_at(layer):
            with self._observing(self.plan), stage("sinks"):
                sinks.observe(inputs[rows])

    def end(self) -> None:
        """The forward is queued; what it has shown is told by the side pools from now on."""
        if self.plan is not None and self._sinks is not None and self._visual_slots is not None:
            with self._observing(self.plan), stage("sinks"):
                self._sinks.end(self._visual_slots, self._pools.side.frame_norms)
        self.plan = None

    def observe_norms(self, layer: int, hidden: torch.Tensor) -> None:
        """Record the norms of the layer's input, or of its difference from each screenshot's mean.

        Args:
            layer: Index of the layer.
            hidden: [num_new_tokens, C], after the input norm.
        """
        if self.plan is not None and self._visual_rows is not None and self._visual_slots is not None:
            with self._observing(self.plan):
                self._record_norms(layer, hidden, self._visual_rows, self._visual_slots)

    def _record_norms(self, layer: int, hidden: torch.Tensor, rows: Rows, slots: torch.Tensor) -> None:
        visual = centres = None
        if self._frame_indptr is not None:
            with stage("frame_means"):
                visual = hidden[rows]
                centres = self.ops.frame_means(
                    visual,
                    self._frame_indptr,
                    None if self._sinks is None else self._sinks.excess,
                    max_rows=max(self._frame_sizes),
                    most_excess=0.0 if self._sinks is None else self._sinks.ratio,
                )
        with stage("frame_norms"):
            visual = hidden[rows] if visual is None else visual
            self.ops.frame_norms(visual, slots, self._pools.side.frame_norms[layer], centres, self._centre_ids)

    @property
    def scores(self) -> bool:
        """Whether the running forward is a prefill whose window is scored."""
        return self.plan is not None and self.plan.group_scores is not None

    def observe_queries(
        self, layer: int, query: torch.Tensor, sm_scale: float, log_sums: torch.Tensor | None = None
    ) -> None:
        """Score all live keys of the layer with the queries that the policy asks for.

        Args:
            layer: Index of the layer; its keys are in the pool.
            query: [num_new_tokens, H, D], rotary applied.
            sm_scale: Scale of the logits.
            log_sums: float32 [num_new_tokens, H], log2 of each query's sum of exponentials over the keys that it sees,
                where attention has returned it.
        """
        if self.plan is not None:
            with self._observing(self.plan):
                self._score_keys(self.plan, layer, query, sm_scale, log_sums)

    def _score_keys(
        self, plan: BatchPlan, layer: int, query: torch.Tensor, sm_scale: float, log_sums: torch.Tensor | None
    ) -> None:
        if plan.kv_indices is None or plan.slots is None or plan.indptr is None:
            return
        attention = self._pools.side.attention
        if attention is not None:
            with stage("all_queries"):
                sizes = [(request.new_end - request.new_start, request.layout.num_live) for request in plan.requests]
                keys = self._pools.keys[layer]
                add_attention(query, keys, plan.kv_indices.long(), sizes, sm_scale, attention[layer])
        if plan.group_scores is None or self._window_rows is None or self._query_indptr is None:
            return
        layouts = [request.layout for request in plan.scored]
        with stage("window_scores"):
            self.ops.window_scores(
                query[self._window_rows],
                self._query_indptr,
                self._pools.keys[layer],
                plan.slots,
                plan.indptr,
                sm_scale=sm_scale,
                pool_width=self._pool_width,
                max_window=max(layout.window for layout in layouts),
                max_num_live=max(layout.num_live for layout in layouts),
                out=plan.group_scores[layer],
                log_sums=None if log_sums is None else log_sums[self._window_rows].contiguous(),
            )


def _input_norm(block: nn.Module) -> nn.Module:
    """The norm that a decoder layer begins with."""
    norm = getattr(block, "input_layernorm", None)
    if norm is None:
        raise RuntimeError(
            f"cannot look for sinks: {type(block).__name__} has no input_layernorm, whose input shows them; start with "
            '--kv-policy-config \'{"sinks": "off"}\''
        )
    found: nn.Module = norm
    return found


def _input_hook(observer: Observer, layer: int) -> Any:
    def record(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        del module
        # Where the layer before has left something to add, the norm adds it first and returns the sum.
        adds = len(args) > 1 and args[1] is not None
        observer.observe_inputs(layer, output[1] if adds else args[0])

    return record


def _norm_hook(observer: Observer, layer: int) -> Any:
    def record(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        del module, args
        observer.observe_norms(layer, kwargs["hidden_states"])

    return record
