"""`star-kv bench waiting`: what a look at all waiting prompts costs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def waiting(
    requests: Annotated[int, typer.Option(min=2, help="Requests that wait.")] = 500,
    shared: Annotated[int, typer.Option(min=0, help="Tokens that all of them begin with.")] = 26_000,
    own: Annotated[int, typer.Option(min=1, help="Tokens of each behind them.")] = 500,
    queries: Annotated[int, typer.Option(min=2, help="Queries of each kind.")] = 200,
    csv: Annotated[Path | None, typer.Option(help="Append the rows to this CSV.")] = None,
) -> None:
    """Find the longest prefix that a prompt shares with another one that waits, as is done twice for each prompt on the
    scheduler's thread: by comparing it with all, and by the tree of what waits.
    """
    from rich.console import Console

    from star_kv_sglang.tools.bench.query_times import report
    from star_kv_sglang.tools.bench.waiting import QueueShape, measure

    shape = QueueShape(num_waiting=requests, num_shared=shared, num_own=own)
    title = f"{requests:,} requests wait and share {shared:,} tokens: one query"
    rows = measure(shape, num_queries=queries)
    report(Console(), title, ("query", "queries"), rows, csv, "waiting prompts", shape)
