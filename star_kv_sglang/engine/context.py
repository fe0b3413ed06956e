"""What the engine's parts have in common."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from star_kv_sglang.cache.radix_cache import StarRadixCache
from star_kv_sglang.config import PolicyConfig
from star_kv_sglang.engine.faults import FaultLog
from star_kv_sglang.engine.image_window import ImageWindow
from star_kv_sglang.engine.model_parts import ModelParts
from star_kv_sglang.engine.row_holes import RowHoles
from star_kv_sglang.engine.stats import PolicyCounters
from star_kv_sglang.policies.base.interface import KVPolicy
from star_kv_sglang.request_params import RequestParams


@dataclass(frozen=True)
class EngineContext:
    """One for each process.

    Attributes:
        config: The configuration.
        policy: Scores.
        parts: The model's pools, and what attention is told of the batch that runs.
        tree: Where prompts are stored and pruned.
        counters: What has happened.
        faults: A fault before the first move of a token costs a request its pruning only, and is counted here.
        room: Live tokens for which there is memory to score them together.
        rows: Holes of the rows of SGLang's table.
    """

    config: PolicyConfig
    policy: KVPolicy[Any]
    parts: ModelParts
    tree: StarRadixCache
    counters: PolicyCounters
    faults: FaultLog
    room: int
    rows: RowHoles = field(default_factory=RowHoles)

    def budget_of(self, params: RequestParams) -> float:
        """Share of a request's private visual tokens that stay: its own, or the server's; all with a token budget."""
        if self.config.token_budget is not None:
            return self.config.budget
        return self.config.budget if params.budget is None else params.budget

    def window_of(self, params: RequestParams) -> ImageWindow:
        """Which of a request's screenshots are in its window: its own, or the server's."""
        config = self.config
        return ImageWindow(
            config.image_window if params.image_window is None else params.image_window,
            config.window_rest if params.window_rest is None else params.window_rest,
        )
