"""Calls a subcommand of `star-kv` that is written with typer."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Final

import typer

# What each module `star_kv_sglang.tools.cli.<name>` calls its command: a function with annotations, or a `typer.Typer`.
TARGETS: Final = {
    "rollout": "rollout",
    "eval": "eval_app",
    "bench": "bench_app",
    "view": "view",
    "replay": "replay",
    "tune": "tune",
}


def run(name: str, argv: Sequence[str]) -> int:
    """Import a subcommand, hand it its words, and return its exit status."""
    target = getattr(importlib.import_module(f"star_kv_sglang.tools.cli.{name}"), TARGETS[name])
    app = target
    if not isinstance(target, typer.Typer):
        app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
        app.command()(target)
    try:
        app(args=list(argv), prog_name=f"star-kv {name}")
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0
