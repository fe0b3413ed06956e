"""Wishes of requests in an engine: wrong ones end nobody's server, and what is pinned is bounded and counted."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import pytest

from tests.engine.conversation import Chat, turn
from tests.engine.harness import TestEngine
from tests.engine.masked_reference import drops_of

pytestmark = pytest.mark.slow

NUM_OUTPUT = 4
POOL: Final = 2000
PINNED_SHARE: Final = 0.1
SHARE: Final = {"kv_share": True}

ENGINE: Final[Mapping[str, Any]] = {
    "kv_policy": "star-paper",
    "kv_budget": 0.2,
    "max_total_tokens": POOL,
    "policy_config": {"pinned_share": PINNED_SHARE},
}


@pytest.mark.parametrize(
    ("custom", "part"),
    [({"kv_share": "no"}, "kv_share 'no'"), ({"kv_budget": 7}, "kv_budget 7 "), ({"kv_budgt": 1}, "mean kv_budget")],
)
def test_a_wrong_wish_that_comes_past_http_is_refused_before_it_is_queued(
    engine: TestEngine, custom: dict[str, Any], part: str
) -> None:
    """Engine.generate, gRPC and further tokenizer processes send to the scheduler without SGLang's HTTP handlers."""
    with pytest.raises(ValueError, match=part):
        engine.answer(turn(Chat(), 1), NUM_OUTPUT, custom_params=custom)
    assert engine.run(engine.idle_stats())["num_live_tokens"] == 0
    assert engine.answer(turn(Chat(), 1), NUM_OUTPUT).cached == 0, "it still serves"


def test_pins_are_bounded_and_counted(engine: TestEngine, trace: Path) -> None:
    before = engine.stats()
    first, refused = [], []
    for number in range(8):
        rid = f"share-{number}"
        engine.answer(turn(Chat(), 50 + number), NUM_OUTPUT, rid=rid, custom_params=SHARE)
        (refused if drops_of(trace, rid) else first).append(rid)
    after = engine.stats()
    assert first and refused
    assert first + refused == sorted(first + refused), "the first ones were pinned, the others pruned"
    assert after["num_pins"] - before["num_pins"] == len(first)
    assert after["num_refused_pins"] - before["num_refused_pins"] == len(refused)
    assert after["num_shared_tokens"] <= PINNED_SHARE * POOL
    engine.flush()
    engine.answer(turn(Chat(), 50), NUM_OUTPUT, rid="after-flush", custom_params=SHARE)
    assert not drops_of(trace, "after-flush"), "what is gone makes room"


def test_a_prefix_for_forks_counts_too(engine: TestEngine) -> None:
    before = engine.stats()
    for number in range(8):
        engine.answer(turn(Chat(), 70 + number), 0)
    after = engine.stats()
    pins, refused = (after[name] - before[name] for name in ("num_pins", "num_refused_pins"))
    assert pins > 0 and refused > 0
    assert pins + refused == 8
