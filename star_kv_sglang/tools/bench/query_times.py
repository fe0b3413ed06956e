"""What one query costs the thread that answers it: rows, a table of them, and their CSV."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from star_kv_sglang.tools.bench.append import append_rows
from star_kv_sglang.tools.bench.serve.machine import describe

if TYPE_CHECKING:
    from _typeshed import DataclassInstance
    from rich.console import Console


@dataclass(frozen=True)
class QueryTime:
    """Microseconds of this thread for one query.

    Attributes:
        query: What is asked, and how.
        num_queries: So many were measured.
        median_us, worst_us: Over all of them.
    """

    query: str
    num_queries: int
    median_us: float
    worst_us: float

    @classmethod
    def of(cls, query: str, seconds: Sequence[float]) -> QueryTime:
        """The row of these measurements."""
        times = [1e6 * one for one in seconds]
        return cls(query, len(times), statistics.median(times), max(times))


def report(
    console: Console,
    title: str,
    columns: tuple[str, str],
    rows: Iterable[QueryTime],
    csv: Path | None,
    what: str,
    shape: DataclassInstance,
) -> None:
    """Print the rows when all are measured, and append them to a CSV with the machine's name and versions.

    Args:
        console: Where the table goes.
        title: Its title.
        columns: Headings of the first two columns: what is asked, and how often.
        rows: They may be measured while they are read.
        csv: The file, if any.
        what: What was measured, by name.
        shape: How large it was.
    """
    from rich.table import Table

    table = Table(title=f"{title} in microseconds")
    table.add_column(columns[0])
    for column in (columns[1], "median", "worst"):
        table.add_column(column, justify="right")
    measured = list(rows)
    for row in measured:
        table.add_row(row.query, str(row.num_queries), f"{row.median_us:,.0f}", f"{row.worst_us:,.0f}")
    console.print(table)
    if csv is not None:
        machine = {**asdict(describe(what)), **asdict(shape)}
        append_rows(csv, [{**machine, **asdict(row)} for row in measured])
