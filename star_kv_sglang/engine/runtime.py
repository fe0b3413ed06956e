"""The policy of this process, built as SGLang builds its own parts: pool sizes, model, tree, scheduler.

What needs all of them, the engine, is made once the last one is there, and not before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from star_kv_sglang.cache.cut_log import CutLog
from star_kv_sglang.cache.ledger import SegmentLedger
from star_kv_sglang.cache.radix_cache import StarRadixCache
from star_kv_sglang.config import PolicyConfig
from star_kv_sglang.engine.context import EngineContext
from star_kv_sglang.engine.faults import FaultLog
from star_kv_sglang.engine.memory import MemoryPlan
from star_kv_sglang.engine.model_parts import ModelParts
from star_kv_sglang.engine.policy_engine import PolicyEngine
from star_kv_sglang.engine.stats import PolicyCounters
from star_kv_sglang.introspection.protocol import OFF
from star_kv_sglang.policies import policy_class

if TYPE_CHECKING:
    from sglang.srt.managers.scheduler import Scheduler
    from sglang.srt.mem_cache.cache_init_params import CacheInitParams
    from sglang.srt.model_executor.model_runner import ModelRunner


class Runtime:
    """What this process has of the policy so far.

    Args:
        config: The configuration.

    Attributes:
        config: Likewise.
        memory: What is taken beside K and V.
        counters: What has happened so far.
    """

    def __init__(self, config: PolicyConfig) -> None:
        self.config = config
        self._policy = policy_class(config.policy)(config.chosen_params())
        self.memory = MemoryPlan(config, self._policy)
        self.counters = PolicyCounters()
        self._faults = FaultLog(self.counters)
        self._parts: ModelParts | None = None
        self._tree: StarRadixCache | None = None
        self._engine: PolicyEngine | None = None

    def model_parts(self, runner: ModelRunner) -> ModelParts:
        """The model's pools exist: asked by each attention backend that is built, made once."""
        if self._parts is None:
            self._parts = ModelParts.of_model(runner, self.config, self._policy, self.memory, self._faults)
        return self._parts

    def build_tree(self, params: CacheInitParams) -> StarRadixCache:
        """The tree, with a ledger of scored segments where these are pruned more than once.

        Raises:
            RuntimeError: SGLang has built no attention backend of ours.
        """
        if self._parts is None:
            raise RuntimeError("SGLang builds its tree before its attention; its order has changed")
        ledger = None
        if self.config.prunes_again:
            ledger = SegmentLedger()
            ledger.slot_ids = self._parts.pools.side.segment_ids
        self._tree = StarRadixCache(params, ledger=ledger)
        if self.config.introspection != OFF:
            self._tree.cut_log = CutLog()
        return self._tree

    def start(self, scheduler: Scheduler) -> None:
        """The scheduler's queues exist: the engine can be built.

        Raises:
            RuntimeError: SGLang has sized no pool, built no attention backend of ours, or not our tree.
        """
        if self._parts is None or self._tree is None or self.memory.room is None:
            raise RuntimeError("SGLang's scheduler is there before its pool, model and tree; its order has changed")
        context = EngineContext(
            self.config, self._policy, self._parts, self._tree, self.counters, self._faults, self.memory.room
        )
        self._engine = PolicyEngine(context, scheduler)

    @property
    def engine(self) -> PolicyEngine:
        """The engine.

        Raises:
            RuntimeError: The scheduler is not there yet.
        """
        if self._engine is None:
            raise RuntimeError("a batch runs before SGLang's scheduler has its queues; its order of building changed")
        return self._engine


_runtime: Runtime | None = None


def install(config: PolicyConfig) -> None:
    """Set this process's policy, once, when SGLang's scheduler process loads the plugin.

    Raises:
        RuntimeError: There is one already.
    """
    global _runtime
    if _runtime is not None:
        raise RuntimeError("a KV policy is already installed in this process")
    _runtime = Runtime(config)


def get() -> Runtime:
    """What this process has of the policy.

    Raises:
        RuntimeError: The plugin was not activated here.
    """
    if _runtime is None:
        raise RuntimeError("no KV policy is installed in this process; SGLang did not load the star_kv plugin")
    return _runtime


def engine() -> PolicyEngine:
    """The engine of this process.

    Raises:
        RuntimeError: The plugin was not activated here, or the scheduler is not there yet.
    """
    return get().engine
