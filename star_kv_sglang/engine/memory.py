"""Memory: what a policy takes beside K and V, and what the tree gives back when it holds too much."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypedDict

import torch

from star_kv_sglang.cache.radix_cache import StarRadixCache
from star_kv_sglang.cache.side_pools import SidePools
from star_kv_sglang.config import PolicyConfig
from star_kv_sglang.engine.faults import FaultLog
from star_kv_sglang.engine.ranges import stage
from star_kv_sglang.engine.row_holes import RowHoles
from star_kv_sglang.engine.sharing import PromptSharing
from star_kv_sglang.engine.stats import PolicyCounters
from star_kv_sglang.engine.tree_budget import Cut, TreeBudget
from star_kv_sglang.policies.base.interface import KVPolicy, Queries

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import Req

SLACK = 50
"""A step of the tree-wide budget leaves a 50th of it free, so that not every prompt needs one."""
SHRINK_STEP = 100
"""Least part of the pool that is freed at once when it runs short."""
MOST_WORKSPACE = 10
"""At most this part of the pool's memory is left for scoring: a small pool holds no prompts that need more."""
FLOATS_PER_UNIT = 8
"""Values for each live token and unit that scoring holds at its peak beside the window's attention: offsets and norms
of the tokens, fused and calibrated scores, their order."""


class SidePoolKinds(TypedDict):
    """Which side pools there are, as `SidePools.allocate` takes them."""

    norm_dtype: torch.dtype
    units_per_layer: int
    with_attention: bool
    with_scores: bool


class MemoryPlan:
    """Memory beside K and V, known before SGLang sizes its pool.

    Args:
        config: What is pruned, and whether it is pruned again.
        policy: What has to be remembered of each slot.

    Attributes:
        room: Live tokens that can be scored together; None until SGLang sizes its pool.
    """

    def __init__(self, config: PolicyConfig, policy: KVPolicy[Any]) -> None:
        self._config = config
        self._policy = policy
        self.room: int | None = None

    def side_pools(self, kv_dtype: torch.dtype, *, num_groups: int) -> SidePoolKinds:
        """Which side pools there are.

        Args:
            kv_dtype: Of K and V.
            num_groups: Key heads of a layer.
        """
        return {
            "norm_dtype": torch.float32 if kv_dtype == torch.float32 else torch.float16,
            "units_per_layer": num_groups if self._policy.per_head else 1,
            "with_attention": self._policy.queries is Queries.ALL and self._config.prunes,
            "with_scores": self._config.prunes_again,
        }

    def bytes_per_slot(self, num_layers: int, kv_dtype: torch.dtype, *, num_groups: int) -> int:
        """Memory for each slot of the pool.

        Args:
            num_layers: Layers with K and V.
            kv_dtype: Of K and V.
            num_groups: Key heads of a layer.
        """
        return SidePools.bytes_per_slot(num_layers, **self.side_pools(kv_dtype, num_groups=num_groups))

    def workspace_bytes(self, num_layers: int, num_tokens: int, *, num_groups: int) -> int:
        """Memory that scoring takes at the end of a prefill, for prompts that have so many live tokens together.

        Args:
            num_layers: Layers with K and V.
            num_tokens: Live tokens of the batch.
            num_groups: Key heads of a layer.
        """
        if not self._config.prunes:
            return 0
        return num_tokens * self._workspace_per_token(num_layers, num_groups)

    def reserve(self, available: int, num_layers: int, num_tokens: int, *, num_groups: int) -> int:
        """Leave room for scoring beside the pool.

        Args:
            available: Bytes for the pool and this room.
            num_layers: Layers with K and V.
            num_tokens: Live tokens that a batch may have together.
            num_groups: Key heads of a layer.

        Returns:
            Bytes of the room, a tenth of what there is at most.
        """
        wanted = self.workspace_bytes(num_layers, num_tokens, num_groups=num_groups)
        reserved = min(wanted, available // MOST_WORKSPACE)
        self.room = reserved // self._workspace_per_token(num_layers, num_groups)
        return reserved

    def _workspace_per_token(self, num_layers: int, num_groups: int) -> int:
        units = num_groups if self._policy.per_head else 1
        floats = num_groups + FLOATS_PER_UNIT * units
        return num_layers * floats * torch.float32.itemsize


class TreeMemory:
    """Cuts scored segments again: for the tree-wide budget, and when the pool runs short.

    Args:
        config: The budget, and whether shrinking comes before eviction.
        tree: What is cut.
        budget: Chooses and cuts; None where nothing is pruned twice.
        sharing: Which requests wait.
        rows: Learn the holes of running requests.
        counters: Count what was freed.
        faults: A fault before the first move costs the cut only.
    """

    def __init__(
        self,
        config: PolicyConfig,
        tree: StarRadixCache,
        budget: TreeBudget | None,
        sharing: PromptSharing,
        rows: RowHoles,
        counters: PolicyCounters,
        faults: FaultLog,
    ) -> None:
        self._config = config
        self._tree = tree
        self._budget = budget
        self._sharing = sharing
        self._rows = rows
        self._counters = counters
        self._faults = faults

    def hold_budget(self, running: Sequence[Req]) -> None:
        """Bring the private nodes below the tree-wide budget, if they are above it.

        Args:
            running: Requests whose rows may change now.
        """
        limit, sharing, counters = self._config.token_budget, self._tree.sharing, self._counters
        if limit is None or self._budget is None or sharing.private_size <= limit:
            return
        target, cut = limit - limit // SLACK, Cut()
        with stage("budget"), self._faults.guard("cutting to the token budget", "leaves are dropped instead"):
            cut = self._budget.reduce_private(target, running=running, waiting=self._sharing.waiting())
        for req, num_holes in cut.holes:
            self._rows.add(req.kv.req_pool_idx, num_holes)
        counters.num_budget_steps += 1
        counters.num_pruned_tokens += cut.num_freed
        if sharing.private_size > limit:
            with stage("budget"):
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
        with stage("shrink"), self._faults.guard("shrinking before eviction", "leaves are dropped instead"):
            cut = self._budget.shrink_unused(wanted, waiting=self._sharing.waiting(), rank=rank)
        counters = self._counters
        counters.num_shrinks += cut.num_freed > 0
        counters.num_shrunk_tokens += cut.num_freed
        counters.num_avoided_evictions += cut.num_freed >= num_tokens
        return cut.num_freed
