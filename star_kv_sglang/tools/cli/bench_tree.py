"""`star-kv bench tree`: the tree's operations beside SGLang's."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def tree(
    nodes: Annotated[int, typer.Option(min=1000, help="Nodes in each tree.")] = 100_000,
    operations: Annotated[int, typer.Option(min=10, help="Of each kind, in a round.")] = 1000,
    rounds: Annotated[int, typer.Option(min=1)] = 7,
    csv: Annotated[Path | None, typer.Option(help="Append the rows to this CSV.")] = None,
) -> None:
    """Match, lock, insert and evict on both trees in turns, in one process on the CPU; and what a prune adds."""
    from rich.console import Console
    from rich.table import Table

    from star_kv_sglang.tools.bench.tree import append_csv, measure

    table = Table(title=f"{nodes:,} nodes, one operation in microseconds")
    for column in ("operation", "this tree", "SGLang's", "ratio"):
        table.add_column(column, justify="left" if column == "operation" else "right")
    rows = []
    for row in measure(nodes, operations, rounds):
        rows.append(row)
        stock = row.ratio == row.ratio
        table.add_row(
            row.operation,
            f"{row.star_us:.2f}",
            f"{row.stock_us:.2f}" if stock else "",
            f"{row.ratio:.2f}" if stock else "",
        )
    Console().print(table)
    if csv is not None:
        append_csv(csv, rows)
