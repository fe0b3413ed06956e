"""A model without vision: it is served, and nothing of it is pruned."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.engine.conversation import Chat, question
from tests.engine.harness import running_engine

pytestmark = pytest.mark.slow


def test_model_without_vision_works_and_says_once_that_nothing_is_pruned(
    checkpoint: Callable[[str], Path], capfd: pytest.CaptureFixture[str]
) -> None:
    chat = Chat().ask(question(1, 20))
    with running_engine(checkpoint("llama"), kv_policy="star", log_level="warning") as engine:
        answer = engine.answer(chat)
        again = engine.answer(chat.reply(answer.text).ask(question(2)))
        stats = engine.stats()
    assert again.cached == answer.num_stored
    assert (stats["num_hole_tokens"], stats["num_prunes"]) == (0, 0)
    captured = capfd.readouterr()
    assert (captured.out + captured.err).count("never prunes text") == 1
