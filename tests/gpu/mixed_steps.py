"""A plugin of SGLang for tests: counts the mixed steps, with a policy those in which a row has holes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.engine.machine import environment
from tests.engine.plugin import sglang_plugin

_FILE = "STAR_KV_MIXED_STEPS"


def register() -> None:
    """Write a line for each such step of this process; the page tables themselves stay as they are."""
    from sglang.srt.model_executor.model_runner import ModelRunner

    log = os.open(os.environ[_FILE], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    forward = ModelRunner.forward

    def noting(runner: Any, forward_batch: Any, *args: Any, **kwargs: Any) -> Any:
        policy = getattr(runner.attn_backend, "_policy", None)
        if forward_batch.forward_mode.is_mixed() and (policy is None or policy.batch_holes is not None):
            os.write(log, b"mixed\n")
        return forward(runner, forward_batch, *args, **kwargs)

    ModelRunner.forward = noting


@contextmanager
def counted_mixed_steps(log: Path) -> Iterator[None]:
    """Engines that start in the block write to ``log``, a line for each step."""
    log.touch()
    with environment({_FILE: str(log)}), sglang_plugin(__name__):
        yield
