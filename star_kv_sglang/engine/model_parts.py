"""What attention and the engine have in common: the model's pools, the ops on them, and what runs right now."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import torch

from star_kv_sglang.cache.side_pools import SidePools
from star_kv_sglang.config import NO_MERGE, PolicyConfig
from star_kv_sglang.engine.compaction import KVPools
from star_kv_sglang.engine.faults import FaultLog
from star_kv_sglang.engine.memory import MemoryPlan
from star_kv_sglang.engine.observer import Observer
from star_kv_sglang.engine.ranks import Ranks
from star_kv_sglang.policies.base.interface import KVPolicy, Merge, Norms
from star_kv_sglang.triton_ops.dispatch import default_ops

if TYPE_CHECKING:
    from sglang.srt.model_executor.model_runner import ModelRunner

    from star_kv_sglang.triton_ops.dispatch import Ops

logger = logging.getLogger(__name__)


def merge_of(config: PolicyConfig, policy: KVPolicy[Any]) -> Merge | None:
    """What becomes of pairs that are dropped: what the configuration says, or else the policy."""
    if config.merge is None:
        return policy.merge
    return None if config.merge == NO_MERGE else Merge(config.merge)


class ModelParts:
    """Built with the attention backend, which asks here for what is special about the batch that runs.

    Attributes:
        pools: K, V and the side pools.
        ops: Kernels or references.
        observer: Watches the forward of a prefill.
        ranks: Who else holds a part of the model.
        merge_size: Patches that the vision tower merges into one token, along each side.
        batch_holes: int64 [R], holes of each row of the batch that runs; None where no row has any.
    """

    def __init__(self, pools: KVPools, ops: Ops, observer: Observer, ranks: Ranks, *, merge_size: int = 1) -> None:
        self.pools = pools
        self.ranks = ranks
        self.ops = ops
        self.observer = observer
        self.merge_size = merge_size
        self.batch_holes: torch.Tensor | None = None

    @classmethod
    def of_model(
        cls, runner: ModelRunner, config: PolicyConfig, policy: KVPolicy[Any], memory: MemoryPlan, faults: FaultLog
    ) -> ModelParts:
        """Take the model's pools and watch its layers.

        Args:
            runner: SGLang's model runner; its pools are there.
            config: The configuration.
            policy: What has to be recorded.
            memory: Says which side pools there are.
            faults: What fails while the model is watched is counted here.
        """
        vision = getattr(runner.model_config.hf_config, "vision_config", None)
        if vision is None:
            logger.warning("the model has no vision tower: --kv-policy %s never prunes text", config.policy)
        pool = runner.token_to_kv_pool
        layers = range(pool.start_layer, pool.start_layer + pool.layer_num)
        keys = [pool.get_key_buffer(layer) for layer in layers]
        values = [pool.get_value_buffer(layer) for layer in layers]
        num_slots, num_groups = keys[0].shape[:2]
        kinds = memory.side_pools(keys[0].dtype, num_groups=num_groups)
        side = SidePools.allocate(len(keys), num_slots, device=keys[0].device, **kinds)
        pools = KVPools(keys, values, side, per_head=policy.per_head, merge=merge_of(config, policy))
        ops = default_ops(keys[0].device)
        observer = Observer(
            pools,
            policy.pool_width,
            ops,
            faults,
            queries=policy.queries,
            norms=policy.norms,
            sink_ratio=policy.sink_ratio,
        )
        if vision is not None and config.prunes and policy.norms is not Norms.NONE:
            observer.watch_layers(runner.model)
        ranks = Ranks.of_model(runner)
        faults.is_alone = ranks.size == 1
        tokens = config.token_budget
        logger.info(
            "KV policy %s: budget %s, observation window %d, side pools %.1f MiB",
            config.policy,
            f"{config.budget:.3g}" if tokens is None else f"{tokens} tokens",
            policy.observation_window,
            side.num_bytes / 2**20,
        )
        return cls(pools, ops, observer, ranks, merge_size=1 if vision is None else int(vision.spatial_merge_size))
