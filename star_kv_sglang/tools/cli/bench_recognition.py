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
    from rich.table import Table

    from star_kv_sglang.tools.bench.recognition import CacheShape, append_csv, measure

    shape = CacheShape(num_branches=branches, num_turns=turns, kept=kept, same_words=same_words)
    table = Table(title=f"{branches:,} branches of {turns} turns are cached: one prompt in microseconds")
    table.add_column("prompt shows")
    for column in ("prompts", "median", "worst"):
        table.add_column(column, justify="right")
    rows = []
    for row in measure(shape, num_queries=queries):
        rows.append(row)
        table.add_row(row.query, str(row.num_queries), f"{row.median_us:,.0f}", f"{row.worst_us:,.0f}")
    Console().print(table)
    if csv is not None:
        append_csv(csv, shape, rows)
