"""A prefill that could not be planned or observed told nobody which token of its screenshot each slot holds.

Policies that put tokens back to their places on the screen read it in every later turn: on a GPU a place that does not
exist would end the process.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.engine.conversation import NUM_VISUAL, Chat, turn
from tests.engine.faulty import ask, faulty_engine

pytestmark = pytest.mark.slow


def test_later_turns_of_a_policy_that_looks_at_places_are_pruned(
    checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    with faulty_engine(tmp_path, checkpoint("qwen2_5_vl"), "star", kv_budget=0.2) as faulty:
        for number, place in enumerate(("plan", "rows", "frames"), start=1):
            faulty.engine.flush()
            with faulty.failing(place):
                _, chat = ask(faulty, turn(Chat(), 1))
            for later in (2, 3):
                _, chat = ask(faulty, turn(chat, later))
            stats = faulty.engine.stats()
            assert stats["num_pruner_faults"] == number, f"the turns after a fault in {place} have none of their own"
            assert stats["num_hole_tokens"] == 3 * NUM_VISUAL - math.ceil(0.2 * 3 * NUM_VISUAL)
