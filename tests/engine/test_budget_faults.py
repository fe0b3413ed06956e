"""An error in the step of the tree-wide budget: the budget holds nevertheless."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.engine.conversation import Chat, turn
from tests.engine.faulty import ask, faulty_engine

pytestmark = pytest.mark.slow


def test_where_the_token_budget_cannot_be_cut_leaves_are_dropped(
    checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    with faulty_engine(tmp_path, checkpoint("qwen2_5_vl"), kv_token_budget=150) as faulty:
        with faulty.failing("budget"):
            for seed in range(6):
                ask(faulty, turn(Chat(), seed))
            stats = faulty.engine.run(faulty.engine.idle_stats())
        assert stats["num_pruner_faults"] > 0
        assert stats["num_budget_evicted_tokens"] > 0
        assert stats["num_private_tokens"] <= 150
        assert faulty.num_logged("ValueError: injected into budget") == 1
