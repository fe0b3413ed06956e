"""Calls `star-kv` in this process."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass

from star_kv_sglang.cli.main import main


@dataclass(frozen=True)
class Answer:
    """What a command did.

    Attributes:
        exit_code: its exit status.
        output: what it wrote to stdout and stderr.
    """

    exit_code: int
    output: str


def star_kv(words: Sequence[str]) -> Answer:
    """Run `star-kv` with these words."""
    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        status = main(words)
    return Answer(status, output.getvalue())
