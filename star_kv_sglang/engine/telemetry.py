"""What others are told: responses, the server's info page, its metrics, and files with what was kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from sglang.srt.constants import HEALTH_CHECK_RID_PREFIX

from star_kv_sglang.cache.radix_cache import Stored
from star_kv_sglang.engine.context import EngineContext
from star_kv_sglang.engine.ranges import measure_with
from star_kv_sglang.engine.stats import KeptByAge, RequestUse, report, tree_sizes
from star_kv_sglang.engine.trace import PruneTrace
from star_kv_sglang.kept_format import KEPT, incomplete
from star_kv_sglang.metrics.clock import StageClock
from star_kv_sglang.metrics.publisher import Publisher

if TYPE_CHECKING:
    import torch
    from sglang.srt.managers.schedule_batch import Req
    from sglang.srt.managers.scheduler import Scheduler

    from star_kv_sglang.cache.segments import Segment
    from star_kv_sglang.cache.side_pools import SidePools
    from star_kv_sglang.engine.records import RequestRecord
    from star_kv_sglang.engine.window_recognition import RecognisedWindow

META_INFO = "star_kv"
"""Key of a response's ``meta_info``."""
WINDOW = "window"
"""Key in it of what a recognised window left out."""


def _tell_last(req: Req, kept: Mapping[str, Any]) -> None:
    """Give the record to the answer's last token: a stream sends it with its last chunk."""
    length = len(req.output_ids_through_stop)
    if not length:
        return
    if req.customized_info is None:
        req.customized_info = {}
    entries = req.customized_info.setdefault(META_INFO, [])
    entries += [None] * (length - len(entries))
    entries[length - 1] = {**(entries[length - 1] or {}), KEPT: kept}


MERGED = "pairs that were dropped have been merged into kept ones, and no mask tells of that"


class Telemetry:
    """Counts and tells. What fails here costs nobody anything else.

    Args:
        context: What the engine's parts share.
        scheduler: Its metrics are those beside which ours stand, where it has any.
    """

    def __init__(self, context: EngineContext, scheduler: Scheduler) -> None:
        counters, trace_dir = context.counters, context.config.trace_dir
        self._counters = counters
        self._tree = context.tree
        self._faults = context.faults
        self._pools = context.parts.pools
        self._prunes = context.config.prunes
        self._kept = KeptByAge()
        # All ranks keep the same tokens; one writes them down.
        self._trace = PruneTrace(trace_dir) if trace_dir and context.parts.ranks.rank == 0 else None
        self._publisher: Publisher | None = None
        self._clock: StageClock | None = None
        metrics = scheduler.metrics_collector_context
        if metrics.current_scheduler_metrics_enabled:
            numbers = (name for name in asdict(counters) if name.startswith("num_"))
            self._publisher = Publisher(metrics.collector.labels, numbers)
            self._kept.keeps_new = True
            self._clock = StageClock(on_gpu=context.parts.pools.keys[0].is_cuda, observe=self._publisher.observe_stage)
            measure_with(self._clock)

    def report(self) -> dict[str, Any]:
        """Census of the tree and counters, for the server's info page."""
        self.publish()
        times = None if self._clock is None else self._clock.totals
        return report(self._tree, self._counters, self._kept, times)

    def publish(self) -> None:
        """Bring the metrics up to date."""
        if self._publisher is not None and self._clock is not None:
            with self._faults.guard("publishing metrics", "they are incomplete", decides=False):
                self._clock.collect()
                gauges = tree_sizes(self._tree, self._counters)
                self._publisher.publish(gauges, asdict(self._counters), self._kept.take_new())

    def note_private_size(self) -> None:
        """A forward begins: this is what private nodes hold."""
        self._counters.peak_private_tokens = max(self._counters.peak_private_tokens, self._tree.sharing.private_size)

    def note_kept(self, stored: Stored, record: RequestRecord) -> None:
        """A scored prompt has been pruned."""
        with self._faults.guard("counting what was kept", "its figures are incomplete", decides=False):
            self._kept.note(self._tree, stored.path, record.frames)

    def tell(self, stored: Stored, window: RecognisedWindow | None) -> None:
        """Tell the response of a request about its prompt, and about what its client has left out of it."""
        with self._faults.guard("telling a response what was kept", "it lacks it", decides=False):
            self._tell(stored, window)

    def _tell(self, stored: Stored, window: RecognisedWindow | None) -> None:
        req, num_added = stored.req, 0 if window is None else window.num_added
        if req.customized_info is None:
            req.customized_info = {}
        if META_INFO not in req.customized_info:
            # What SGLang asks itself to see whether it lives is nobody's turn.
            if not req.rid.startswith(HEALTH_CHECK_RID_PREFIX):
                self._counters.num_prompts += 1
                self._counters.num_prompt_tokens += len(req.origin_input_ids) - num_added
                self._counters.num_cached_prompt_tokens += max(0, req.cached_tokens - num_added)
            use = RequestUse.of(self._tree, stored.path, len(req.origin_input_ids))
            # One entry for each output token: this one comes with the first.
            told = asdict(use)
            if window is not None:
                self._counters.num_recognised_windows += 1
                self._counters.num_left_out_images += len(window.fit.left_out)
                told[WINDOW] = {"left_out": len(window.fit.left_out), "branches": window.fit.num_branches}
            req.customized_info[META_INFO] = [told]

    def tell_kept(self, stored: Stored, record: RequestRecord) -> None:
        """Tell the response of a request that has ended what its answer could attend to."""
        with self._faults.guard("telling a response what each layer kept", "it lacks it", decides=False):
            req, side = stored.req, self._pools.side
            if self._prunes and self._pools.merge is not None:
                _tell_last(req, incomplete(MERGED))
                return
            sizes = {
                "num_layers": len(self._pools.keys),
                "num_units": side.frame_offsets.shape[0],
                "prompt_len": len(req.origin_input_ids),
                "length": len(req.origin_input_ids) + len(req.output_ids_through_stop),
            }
            _tell_last(req, record.computed.record(self._tree, stored.path, prunes=self._prunes, **sizes))

    def tell_nothing_kept(self, req: Req) -> None:
        """Tell the response of a request that ended without being stored, where it was told nothing else."""
        with self._faults.guard("telling a response what each layer kept", "it lacks it", decides=False):
            told = (req.customized_info or {}).get(META_INFO) or [{}]
            if KEPT not in (told[-1] or {}):
                _tell_last(req, incomplete("its answer was not stored: it was aborted, or is kept out of the cache"))

    def write_trace(
        self,
        req: Req,
        record: RequestRecord,
        segments: Sequence[tuple[Segment, torch.Tensor]],
        side: SidePools,
        budget: float,
        *,
        after: int,
    ) -> None:
        """Write what was kept of each segment of a prompt, where the server and the request want it.

        Args:
            req: The request.
            record: Its record.
            segments: Each segment as it was, and the slots that are left of its core.
            side: Side pools after the move.
            budget: Share that was to stay.
            after: Queries at this position and later no longer see what went.
        """
        if self._trace is not None and record.params.trace:
            with self._faults.guard("writing a trace", "it is incomplete", decides=False):
                for segment, slots in segments:
                    self._trace.write(req, record.frames, segment, side, slots, budget, after)
