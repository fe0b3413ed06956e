"""An engine into which errors can be injected while it runs."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.engine import injected_faults
from tests.engine.conversation import Answer, Chat
from tests.engine.harness import TestEngine, running_engine

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
def faulty_engine(folder: Path, model: Path, **arguments: object) -> Iterator[Faulty]:
    """An engine into whose scheduler faults can be injected."""
    shutil.copyfile(str(injected_faults.__file__), folder / "injected_faults.py")
    metadata = folder / "injected_faults-0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: injected-faults\nVersion: 0\n", encoding="utf-8")
    entry = "[sglang.srt.plugins]\ninjected_faults = injected_faults:register\n"
    (metadata / "entry_points.txt").write_text(entry, encoding="utf-8")
    switch, log = folder / "switch", folder / "log"
    switch.write_text("", encoding="utf-8")
    with ExitStack() as stack:
        # Processes that are spawned take over this one's path, and find the plugin on it.
        with pytest.MonkeyPatch.context() as patch, printing_to(log):
            patch.syspath_prepend(folder)
            patch.setenv("INJECTED_FAULTS", str(switch))
            engine = stack.enter_context(
                running_engine(model, kv_policy="star-paper", log_level="warning", **arguments)
            )
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
