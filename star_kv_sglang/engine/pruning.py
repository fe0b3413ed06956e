"""A prompt that has entered the tree: what only its branch can use is pruned, as scoring has chosen."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from star_kv_sglang.cache.radix_cache import StarRadixCache, Stored
from star_kv_sglang.engine.compaction import prune_path
from star_kv_sglang.engine.context import EngineContext
from star_kv_sglang.engine.faults import committing
from star_kv_sglang.engine.ranges import stage
from star_kv_sglang.engine.records import RequestRecord, Requests, ScoredPrompt
from star_kv_sglang.engine.sharing import PromptSharing
from star_kv_sglang.engine.telemetry import Telemetry

if TYPE_CHECKING:
    from sglang.srt.mem_cache.radix_cache import TreeNode

logger = logging.getLogger(__name__)


def keep_newest_pattern(tree: StarRadixCache, path: Sequence[TreeNode], *, private_from: int) -> None:
    """Drop the running patterns that the last prompt of a path continues, where nobody else can.

    A pattern has a number for each layer, key head and token of a screenshot, and every prompt's end has a state. What
    is private has one user, whose newest prompt carries the pattern on. Where a fork is known, at a shared node, a
    pinned one, or one that a request which waits has in common, everything stays: each branch inherits it whole. A
    branch that forks from a private node all the same, as by rewriting an earlier turn, finds the history pruned, and
    inherits the rest of the state: its pattern begins anew with its next screenshot.

    Args:
        tree: The tree.
        path: Nodes from the root's child down to the end of the prompt.
        private_from: Nodes that end behind this position are used by this branch only.
    """
    newest = tree.extra(path[-1]).state
    if newest is None:
        return
    for node in reversed(path[:-1]):
        if tree.end_of(node) <= private_from:
            return
        extra = tree.extra(node)
        if extra.state is not None:
            extra.state = extra.state.without_patterns(newest)


class Pruning:
    """Prunes prompts, one at a time, before their first decode step.

    Args:
        context: What the engine's parts share.
        requests: What was chosen for each prompt.
        sharing: What others can use too.
        telemetry: Is told what was kept.
    """

    def __init__(
        self, context: EngineContext, requests: Requests, sharing: PromptSharing, telemetry: Telemetry
    ) -> None:
        self._context = context
        self._tree = context.tree
        self._counters = context.counters
        self._faults = context.faults
        self._requests = requests
        self._sharing = sharing
        self._telemetry = telemetry

    def prune(self, stored: Stored) -> bool:
        """Prune the private segments of a prompt, keep its prefix whole where it asks for it.

        Args:
            stored: The prompt; it comes once more at its request's end.

        Returns:
            Whether the prompt had been scored.
        """
        record = self._requests.of(stored.req)
        record.in_flight = False
        # It asks for nothing but the cache: SGLang's prefix of ``n`` samples, or of a frontend's forks. They may come
        # one after the other, and the first would be taken for the only one.
        only_cached = stored.req.sampling_params.max_new_tokens == 0
        if (only_cached or record.params.share) and not record.running:
            self._sharing.pin(stored)
        record.running = record.running or stored.has_row
        scored, left_whole = self._requests.take_scored(record), record.left_whole
        record.left_whole = None
        if left_whole is not None and stored.path and not only_cached:
            self._tree.extra(stored.path[-1]).state = left_whole
        if scored is None:
            return False
        if scored.agreement is not None:
            scored.agreement.require()
        if not only_cached and stored.path:
            self._note_state(stored, scored)
            with self._faults.guard("pruning a prompt", "it stays unpruned"):
                self._prune(stored, record, scored)
            # The ledger and the marks of slots say the same or nothing.
            with stage("register"), committing():
                self._tree.register_path(stored.path)
            self._telemetry.note_kept(stored, record)
        return True

    def _note_state(self, stored: Stored, scored: ScoredPrompt) -> None:
        """Store the state that the prompt leaves behind, unless it comes from scores that are no numbers."""
        if not scored.is_corrupt():
            self._tree.extra(stored.path[-1]).state = scored.choice.state
            return
        counters = self._counters
        if not counters.num_recency_fallbacks:
            logger.warning(
                "request %s: its scores are not a number; its newest tokens are kept, and what is known of its "
                "trajectory stays as it was. Further cases are only counted.",
                stored.req.rid,
            )
        counters.num_recency_fallbacks += 1

    def _prune(self, stored: Stored, record: RequestRecord, scored: ScoredPrompt) -> None:
        parts, counters = self._context.parts, self._counters
        private_from = self._sharing.private_from(stored.path, stored.req)
        keep_newest_pattern(self._tree, stored.path, private_from=private_from)
        with stage("prune"):
            kept = scored.choice.kept()
            pruned = prune_path(self._tree, stored, kept, parts.pools, parts.ops, private_from=private_from)
        counters.num_skipped_segments += pruned.num_skipped
        if pruned.num_freed:
            record.computed.pruned(stored.req, self._tree.prune_time)
            if stored.has_row:
                self._context.rows.add(stored.req.kv.req_pool_idx, pruned.num_freed)
            counters.num_prunes += 1
            counters.num_pruned_tokens += pruned.num_freed
        budget = self._context.budget_of(record.params)
        end = len(stored.req.origin_input_ids)
        self._telemetry.write_trace(stored.req, record, pruned.segments, parts.pools.side, budget, after=end)
