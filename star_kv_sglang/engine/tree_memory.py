"""What the tree gives back when it holds too much: for the tree-wide budget, and when the pool runs short."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from star_kv_sglang.cache.cut_log import because
from star_kv_sglang.engine.context import EngineContext
from star_kv_sglang.engine.ranges import stage
from star_kv_sglang.engine.records import Requests
from star_kv_sglang.engine.sharing import PromptSharing
from star_kv_sglang.engine.tree_budget import Cut, TreeBudget, TreeRules
from star_kv_sglang.introspection.protocol import SHORT_POOL, TOKEN_BUDGET

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import Req

SLACK = 50
"""A step of the tree-wide budget leaves a 50th of it free, so that not every prompt needs one."""
SHRINK_STEP = 100
"""Least part of the pool that is freed at once when it runs short."""


class TreeMemory:
    """Cuts scored segments again: for the tree-wide budget, and when the pool runs short.

    Args:
        context: What the engine's parts share.
        requests: Those that run are told that they see less.
        sharing: Which requests wait.
    """

    def __init__(self, context: EngineContext, requests: Requests, sharing: PromptSharing) -> None:
        config, parts = context.config, context.parts
        rules = TreeRules(
            config.frame_floor, config.branch_floor, config.recency_weight, current_last=config.current_last
        )
        self._budget = TreeBudget(context.tree, parts.pools, parts.ops, rules) if config.prunes_again else None
        self._config = config
        self._tree = context.tree
        self._requests = requests
        self._sharing = sharing
        self._rows = context.rows
        self._counters = context.counters
        self._faults = context.faults
        self._because = partial(because, context.tree.cut_log)

    def hold_budget(self, running: Sequence[Req]) -> None:
        """Bring the private nodes below the tree-wide budget, if they are above it.

        Args:
            running: Requests whose rows may change now.
        """
        limit, sharing, counters = self._config.token_budget, self._tree.sharing, self._counters
        if limit is None or self._budget is None or sharing.private_size <= limit:
            return
        target, cut = limit - limit // SLACK, Cut()
        with (
            self._because(TOKEN_BUDGET),
            stage("budget"),
            self._faults.guard("cutting to the token budget", "leaves are dropped instead"),
        ):
            cut = self._budget.reduce_private(target, running=running, waiting=self._sharing.waiting())
        for req, num_holes in cut.holes:
            self._rows.add(req.kv.req_pool_idx, num_holes)
            self._requests.of(req).computed.pruned(req, self._tree.prune_time)
        counters.num_budget_steps += 1
        counters.num_pruned_tokens += cut.num_freed
        if sharing.private_size > limit:
            with self._because(TOKEN_BUDGET), stage("budget"):
                excess = sharing.private_size - target
                counters.num_budget_evicted_tokens += self._tree.eviction.drop_leaves(excess, private_only=True)
        counters.num_budget_misses += sharing.private_size > limit

    def shrink(self, num_tokens: int, *, rank: Any) -> int:
        """Prune what no request holds and does not rank higher, down to the floors, before leaves are dropped.

        Args:
            num_tokens: Slots that are wanted.
            rank: Nodes whose eviction rank is higher stay as they are.

        Returns:
            Slots that were freed.
        """
        if self._budget is None or not self._config.shrink_before_evict or num_tokens <= 0:
            return 0
        wanted = max(num_tokens, self._tree.token_to_kv_pool_allocator.size // SHRINK_STEP)
        cut = Cut()
        with (
            self._because(SHORT_POOL),
            stage("shrink"),
            self._faults.guard("shrinking before eviction", "leaves are dropped instead"),
        ):
            cut = self._budget.shrink_unused(wanted, waiting=self._sharing.waiting(), rank=rank)
        counters = self._counters
        counters.num_shrinks += cut.num_freed > 0
        counters.num_shrunk_tokens += cut.num_freed
        counters.num_avoided_evictions += cut.num_freed >= num_tokens
        return cut.num_freed
