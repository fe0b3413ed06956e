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
    from rich.table import Table

    from star_kv_sglang.tools.bench.waiting import QueueShape, append_csv, measure

    shape = QueueShape(num_waiting=requests, num_shared=shared, num_own=own)
    table = Table(title=f"{requests:,} requests wait and share {shared:,} tokens: one query in microseconds")
    table.add_column("query")
    for column in ("queries", "median", "worst"):
        table.add_column(column, justify="right")
    rows = []
    for row in measure(shape, num_queries=queries):
        rows.append(row)
        table.add_row(row.query, str(row.num_queries), f"{row.median_us:,.0f}", f"{row.worst_us:,.0f}")
    Console().print(table)
    if csv is not None:
        append_csv(csv, shape, rows)
