"""The policy in the scheduler process: what SGLang's hooks and the tree call, and who does it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from star_kv_sglang.cache.radix_cache import CacheListener, StarRadixCache, Stored
from star_kv_sglang.config import NEVER
from star_kv_sglang.engine.context import EngineContext
from star_kv_sglang.engine.introspection import Introspection
from star_kv_sglang.engine.kept import note_stored
from star_kv_sglang.engine.plan import BatchPlan
from star_kv_sglang.engine.pruning import Pruning
from star_kv_sglang.engine.records import Requests
from star_kv_sglang.engine.scoring import Scoring
from star_kv_sglang.engine.sharing import PromptSharing
from star_kv_sglang.engine.telemetry import Telemetry
from star_kv_sglang.engine.tree_memory import TreeMemory
from star_kv_sglang.engine.window_recognition import WindowRecognition

logger = logging.getLogger(__name__)

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import Req, ScheduleBatch
    from sglang.srt.managers.scheduler import Scheduler


class PolicyEngine(CacheListener):
    """Plans, scores and prunes: one method for each thing that happens to a batch or a request.

    Args:
        context: What the engine's parts share. The listener of its tree is this engine from now on.
        scheduler: Its queue exists.
    """

    def __init__(self, context: EngineContext, scheduler: Scheduler) -> None:
        self._context = context
        self._prunes = context.config.prunes
        self._has_token_budget = context.config.token_budget is not None
        self._scores_once = context.policy.scores_once
        self._faults = context.faults
        self._observer = context.parts.observer
        self._requests = Requests(context.parts.merge_size, context.faults)
        self._sharing = PromptSharing(context, self._requests, scheduler)
        self._telemetry = Telemetry(context, scheduler)
        self._scoring = Scoring(context, self._requests, self._sharing)
        self._pruning = Pruning(context, self._requests, self._sharing, self._telemetry)
        self._memory = TreeMemory(context, self._requests, self._sharing)
        self._introspection = Introspection(context)
        self.windows: WindowRecognition | None = None
        """Recognises prompts that leave screenshots out, where the server does."""
        if context.config.recognise_windows != NEVER:
            self.windows = WindowRecognition(context, self._requests, self._sharing, self._telemetry, scheduler)
        self._waits = False
        """A prompt of the batch whose results come in was scored: no forward is in flight until the next one begins."""
        context.tree.listener = self

    def note_scheduled(self, batch: ScheduleBatch) -> None:
        """A batch will run next: its prompts no longer wait."""
        if self._prunes and batch.forward_mode.is_extend():
            decoding = set(batch.decoding_reqs or ())
            for req in batch.reqs:
                if req not in decoding:
                    self._sharing.scheduled(req)
                    if self.windows is not None:
                        self.windows.scheduled(req)

    def begin_batch(self, batch: ScheduleBatch) -> BatchPlan | None:
        """A forward is about to begin; returns the plan of a prefill that is to be scored."""
        if not self._prunes:
            return None
        self._waits = False
        if self.windows is not None:
            # Where SGLang does not look ahead, nobody has told of the batch before.
            self.note_scheduled(batch)
        self._telemetry.note_private_size()
        return self._scoring.begin(batch)

    def end_batch(self, plan: BatchPlan | None) -> None:
        """The forward of the batch is queued."""
        self._scoring.end(plan)

    def must_prune_before(self, batch: ScheduleBatch | None) -> bool:
        """Whether the result of the step before, and its prunes with it, comes before the next step is queued.

        A prompt is pruned before its first decode step: otherwise that would see the history whole or pruned depending
        on what else is scheduled. A prefill sees no row of the step before, so that the GPU goes on with it while the
        host prunes; only a token budget for the tree may cut into rows of other requests, and waits for quiet.

        Args:
            batch: The next step; None where there is none. SGLang may have dropped requests that end from the list of
                the step before, so that it is not asked which of them were scored.
        """
        if not self._requests.any_scored:
            return False
        is_prefill = batch is not None and batch.forward_mode.is_extend() and not batch.decoding_reqs
        return not is_prefill or self._has_token_budget

    def on_stored(self, tree: StarRadixCache, stored: Stored) -> None:
        """A request has stored a chunk, its prompt, or itself: at the prompt's end, prune and tell."""
        self._label(tree, stored)
        if self.windows is not None:
            self.windows.note(tree, stored)
        record = self._requests.of(stored.req)
        asks = record.params.return_kept
        if self._prunes:
            note_stored(tree, stored.path, record.computed, asks=asks)
            if not record.running:
                record.computed.stored(tree, stored.path, ends_prompt=stored.ends_prompt, asks=asks)
        if not stored.ends_prompt:
            return
        self._waits |= self._pruning.prune(stored)
        if self._waits and not self._requests.any_scored:
            # With a token budget the next step waits for this one's result: no row of a running request is in use. The
            # batch's last prompt may be one that was left whole.
            self._memory.hold_budget(self._requests.running())
        self._telemetry.tell(stored, None if self.windows is None else self.windows.window_of(stored.req))
        if asks and not stored.has_row:
            self._telemetry.tell_kept(stored, record)
        self._telemetry.publish()

    def _label(self, tree: StarRadixCache, stored: Stored) -> None:
        """Tell new nodes what they hold, and older ones whose request could not read its screenshots."""
        record = self._requests.of(stored.req)
        if not record.knows_frames:
            return
        for node in tree.label_frames(stored.path, record.frames):
            extra = tree.extra(node)
            if self._prunes and (record.placed_from is None or extra.start < record.placed_from):
                told = False
                with self._faults.guard("telling where a screenshot's tokens lie", "it stays unpruned"):
                    for segment in extra.segments:
                        slots = node.value[segment.start - extra.start : segment.end - extra.start]
                        self._observer.tell_places(slots, segment)
                    told = True
                # A score that is remembered for good must not be made of what another token has left in the slot.
                extra.unread = self._scores_once
                if not told:
                    extra.labelled, extra.segments = False, []

    def on_released(self, req: Req) -> None:
        """A request has ended, or was put back into the queue."""
        record = self._requests.known(req)
        if record is not None:
            if self._prunes and not req.finished():
                path = self._context.tree.path(req.last_node) if record.params.return_kept else ()
                record.computed.put_back(self._context.tree, path, req)
            elif record.params.return_kept and req.finished():
                self._telemetry.tell_nothing_kept(req)
        if self.windows is not None:
            self.windows.released(req)
        self._requests.release(req)
        self._sharing.released()
        self._memory.hold_budget(())
        self._telemetry.publish()

    def shrink(self, tree: StarRadixCache, num_tokens: int, *, rank: Any) -> int:
        """The pool runs short; returns how many slots were freed without dropping a leaf."""
        return self._memory.shrink(num_tokens, rank=rank)

    def show(self, question: Mapping[str, Any]) -> dict[str, Any]:
        """Answer somebody who looks at the tree; `Introspection.answer`."""
        try:
            return self._introspection.answer(question)
        except Exception as error:  # nobody who looks may end the scheduler
            logger.exception("answering a question about the tree failed: %s", question)
            return {"failed": f"{type(error).__name__}: {error}"}

    def report(self) -> dict[str, Any]:
        """Census of the tree and counters, for the server's info page."""
        return self._telemetry.report()
