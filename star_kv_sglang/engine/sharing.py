"""What prompts have in common: those that wait or are in flight, branches that may come back, prefixes kept whole."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from star_kv_sglang.cache.radix_cache import Stored
from star_kv_sglang.engine.context import EngineContext
from star_kv_sglang.engine.records import RequestRecord, Requests
from star_kv_sglang.engine.waiting import WaitingPrompts

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import Req
    from sglang.srt.managers.scheduler import Scheduler
    from sglang.srt.mem_cache.radix_cache import TreeNode

logger = logging.getLogger(__name__)

MAX_WAITING = 256
"""Waiting requests that are looked at, from the front of the queue, for prefixes that several will use."""


class PromptSharing:
    """Says which part of a prompt only its own branch can use.

    Args:
        context: What the engine's parts share.
        requests: Those that are in flight share what they have in common with a prompt.
        scheduler: Those in its queue do so too.
    """

    def __init__(self, context: EngineContext, requests: Requests, scheduler: Scheduler) -> None:
        self._tree = context.tree
        self._counters = context.counters
        self._pinned_share = context.config.pinned_share
        self._requests = requests
        self._scheduler = scheduler
        self._prompts = WaitingPrompts()

    def scheduled(self, req: Req) -> RequestRecord:
        """A request no longer waits, and what it shares with others must stay whole until its prompt is in the tree."""
        record = self._requests.of(req)
        record.in_flight = True
        if not record.has_continued:
            record.has_continued = True
            self._tree.sharing.continue_branch(req.last_node, len(req.origin_input_ids))
        return record

    def peer_prefix_len(self, req: Req) -> int:
        """Longest prefix that the request has in common with another one that waits or is in flight."""
        return self._prompts.shared_prefix_len(req, self._peers())

    def private_from(self, path: Sequence[TreeNode], req: Req) -> int:
        """Position from which on only this request uses what it has stored.

        Args:
            path: Nodes from the root's child down to the one that the request locks.
            req: The request.
        """
        return max(self._tree.sharing.shared_until(path), self.peer_prefix_len(req))

    def waiting(self) -> Sequence[Req]:
        """Requests at the front of the queue."""
        queue: Sequence[Req] = self._scheduler.waiting_queue
        return queue[:MAX_WAITING]

    def pin(self, stored: Stored) -> None:
        """Keep a prompt's path whole, unless all that is kept so would be too much of the pool."""
        counters, share = self._counters, self._pinned_share
        at_most = int(share * self._tree.token_to_kv_pool_allocator.size)
        if self._tree.sharing.pin(stored.path, at_most=at_most):
            counters.num_pins += 1
            return
        if not counters.num_refused_pins:
            logger.warning(
                "request %s: its prefix is pruned like any other, as what requests have asked to keep whole may hold "
                "%g of the pool (pinned_share in --kv-policy-config). Further cases are only counted.",
                stored.req.rid,
                share,
            )
        counters.num_refused_pins += 1

    def released(self) -> None:
        """A request gave its row back; where nobody is left, nobody may ask again for long."""
        if next(self._peers(), None) is None:
            self._prompts.clear()

    def _peers(self) -> Iterator[Req]:
        yield from self._requests.in_flight()
        yield from self._scheduler.waiting_queue
