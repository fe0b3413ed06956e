"""A pool that runs short: what nobody holds is pruned before whole branches are dropped."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.engine.branches import NUM_OUTPUT, play
from tests.engine.conversation import NUM_VISUAL, turn
from tests.engine.harness import running_engine

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("shrink", [True, False], ids=["shrink", "evict"])
def test_a_short_pool_shrinks_before_it_evicts(checkpoint: Callable[[str], Path], shrink: bool) -> None:
    config: dict[str, Any] = {"shrink_before_evict": shrink}
    with running_engine(
        checkpoint("qwen2_5_vl"),
        kv_policy="star-paper",
        kv_budget=0.5,
        policy_config=config,
        max_total_tokens=800,
        max_prefill_tokens=128,
    ) as engine:
        chats = play(engine, 8, 4)
        stats = engine.stats()
        cached = [engine.answer(turn(chat, 70_000 + n), NUM_OUTPUT).cached for n, chat in enumerate(chats)]
    assert (stats["num_shrunk_tokens"] > 0) == shrink
    whole = sum(length > 4 * NUM_VISUAL for length in cached)
    if shrink:
        assert stats["num_avoided_evictions"] > 0
        assert whole >= 6
    else:
        assert whole < 6
