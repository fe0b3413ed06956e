"""A screen that does not change: what one turn has kept of it makes room for the rest in the next."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.engine.conversation import Chat, question, screenshot
from tests.engine.harness import running_engine
from tests.engine.masked_reference import drops_of

pytestmark = pytest.mark.slow

NUM_TURNS = 3


def kept_in_turns(model: Path, trace: Path, kept_before: float) -> list[torch.Tensor]:
    """Places that each turn keeps of its copy of one screenshot, bool [num_layers, num_places] each."""
    chat, picture = Chat(), screenshot(1, 14, 9, 32)
    config = {"trace_dir": str(trace), "kept_before": kept_before}
    with running_engine(model, exact=True, kv_policy="star", kv_budget=0.1, policy_config=config) as engine:
        for turn in range(NUM_TURNS):
            chat = chat.ask(question(turn), picture)
            chat = chat.reply(engine.answer(chat, 2, rid=f"turn{turn}").text)
    kept = []
    for turn in range(NUM_TURNS):
        drop = drops_of(trace, f"turn{turn}")[turn]
        places = torch.zeros(len(drop.kept), drop.end - drop.start, dtype=torch.bool)
        kept.append(places.scatter_(1, drop.kept - drop.start, True))
    return kept


def test_turns_keep_different_parts_of_an_unchanged_screen(
    checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> None:
    shown = {}
    for share in (1.0, 0.5):
        first, second, third = kept_in_turns(checkpoint("tinygui"), tmp_path_factory.mktemp("trace"), share)
        shown[share] = [int((one | other).sum()) for one, other in ((first, second), (second, third))]
    assert all(more > 1.3 * less for more, less in zip(shown[0.5], shown[1.0], strict=True))
