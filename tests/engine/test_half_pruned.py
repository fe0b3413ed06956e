"""An error while tokens move: nobody knows which K and V lie where, so that the process stops, with the cause."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.engine.conversation import Chat, turn
from tests.engine.faulty import ask, faulty_engine
from tests.engine.harness import EngineDied

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("place", ["compact", "register"])
def test_the_process_stops_with_the_cause(checkpoint: Callable[[str], Path], tmp_path: Path, place: str) -> None:
    with faulty_engine(tmp_path, checkpoint("qwen2_5_vl"), kv_budget=0.2) as faulty:
        _, chat = ask(faulty, turn(Chat(), 1))
        with faulty.failing(place), pytest.raises(EngineDied):
            ask(faulty, turn(chat, 2))
        assert faulty.num_logged(f"a prune broke off in the middle: injected into {place}") >= 1
