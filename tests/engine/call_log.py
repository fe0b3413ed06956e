"""A plugin of SGLang for tests: writes down every call of a function of ours, in the processes that load plugins."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from tests.engine.machine import environment
from tests.engine.plugin import sglang_plugin

_FILE = "STAR_KV_CALL_LOG"


def register() -> None:
    """Begin in this process, in this thread and in those that start later; the first line says so."""
    log = os.open(os.environ[_FILE], os.O_WRONLY | os.O_APPEND)
    os.write(log, f"{os.getpid()} listens\n".encode())

    def note(frame: FrameType, event: str, argument: object) -> None:
        module = frame.f_globals.get("__name__") or ""
        if event == "call" and module.startswith("star_kv_sglang"):
            os.write(log, f"{os.getpid()} {module}.{frame.f_code.co_qualname}\n".encode())

    threading.setprofile(note)
    sys.setprofile(note)


@contextmanager
def logged_calls(log: Path) -> Iterator[None]:
    """Engines that start in the block write to ``log``; so does this process while the block lasts."""
    log.touch()
    with environment({_FILE: str(log)}), sglang_plugin(__name__):
        register()
        try:
            yield
        finally:
            sys.setprofile(None)
            threading.setprofile(None)
