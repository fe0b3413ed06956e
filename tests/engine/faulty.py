"""An engine into which errors can be injected while it runs."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.engine import injected_faults
from tests.engine.conversation import Answer, Chat
from tests.engine.harness import TestEngine, running_engine
from tests.engine.machine import environment
from tests.engine.plugin import sglang_plugin

NUM_OUTPUT = 4


@dataclass
class Faulty:
    """An engine, the switch of its faults, and what it prints."""

    engine: TestEngine
    switch: Path
    log: Path
    traces: Path

    @contextmanager
    def failing(self, word: str) -> Iterator[None]:
        """Calls of one place fail while the block runs."""
        self.switch.write_text(word, encoding="utf-8")
        yield
        self.switch.write_text("", encoding="utf-8")

    def num_logged(self, words: str) -> int:
        """How often the log says this."""
        return self.log.read_text(encoding="utf-8", errors="replace").count(words)


@contextmanager
def faulty_engine(folder: Path, model: Path, policy: str = "star-paper", **arguments: object) -> Iterator[Faulty]:
    """An engine into whose scheduler faults can be injected."""
    switch, log = folder / "switch", folder / "log"
    switch.write_text("", encoding="utf-8")
    with ExitStack() as stack:
        plugin = sglang_plugin(injected_faults.__name__)
        with plugin, environment({"INJECTED_FAULTS": str(switch)}), printing_to(log):
            engine = stack.enter_context(running_engine(model, kv_policy=policy, log_level="warning", **arguments))
        yield Faulty(engine, switch, log, folder / "traces")


@contextmanager
def printing_to(log: Path) -> Iterator[None]:
    """Processes that are started in the block write their errors to a file."""
    sys.stderr.flush()
    before = os.dup(2)
    with log.open("wb") as file:
        os.dup2(file.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(before, 2)
        os.close(before)


def ask(faulty: Faulty, chat: Chat, rid: str | None = None) -> tuple[Answer, Chat]:
    """One turn."""
    answer = faulty.engine.answer(chat, NUM_OUTPUT, rid=rid)
    return answer, chat.reply(answer.text)
