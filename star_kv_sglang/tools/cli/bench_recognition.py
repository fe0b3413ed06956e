"""`star-kv bench recognition`: what it costs to recognise a prompt that leaves screenshots out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def recognition(
    branches: Annotated[int, typer.Option(min=1, help="Branches in the tree.")] = 1_000,
    turns: Annotated[int, typer.Option(min=2, help="Turns of each.")] = 30,
    kept: Annotated[int, typer.Option(min=1, help="Newest screenshots that a prompt shows.")] = 5,
    same_words: Annotated[bool, typer.Option("--same-words", help="All branches give the same answers.")] = False,
    queries: Annotated[int, typer.Option(min=2, help="Prompts of each kind.")] = 200,
    csv: Annotated[Path | None, typer.Option(help="Append the rows to this CSV.")] = None,
) -> None:
    """Find the branches of prompts that leave screenshots out, as is done twice for each prompt on the scheduler's
    thread.
    """
    from rich.console import Console

    from star_kv_sglang.tools.bench.query_times import report
    from star_kv_sglang.tools.bench.recognition import CacheShape, measure

    shape = CacheShape(num_branches=branches, num_turns=turns, kept=kept, same_words=same_words)
    title = f"{branches:,} branches of {turns} turns are cached: one prompt"
    rows = measure(shape, num_queries=queries)
    report(Console(), title, ("prompt shows", "prompts"), rows, csv, "recognised windows", shape)
