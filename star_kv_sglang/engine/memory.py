"""Memory that a policy takes beside K and V: for each slot, and to score a batch."""

from __future__ import annotations

from typing import Any, TypedDict

import torch

from star_kv_sglang.cache.side_pools import SidePools
from star_kv_sglang.config import PolicyConfig
from star_kv_sglang.policies.base.interface import KVPolicy, Queries

MOST_WORKSPACE = 10
"""At most this part of the pool's memory is left for scoring: a small pool holds no prompts that need more."""
FLOATS_PER_UNIT = 8
"""Values for each live token and unit that scoring holds at its peak beside `KVPolicy.saliencies`: offsets and norms of
the tokens, fused and calibrated scores, their order."""


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
        floats = num_groups * self._policy.saliencies + FLOATS_PER_UNIT * units
        return num_layers * floats * torch.float32.itemsize
