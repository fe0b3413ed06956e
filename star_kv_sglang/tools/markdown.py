"""Tables in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def markdown_table(heads: Sequence[str], rows: Iterable[Sequence[str]], *, numbers: bool = False) -> str:
    """A table, without a line's end behind its last row.

    Args:
        heads: Of the columns.
        rows: A cell for each column; a bar in one is escaped.
        numbers: All columns but the first hold numbers, and stand right.
    """
    rule = ["---", *["---:" if numbers else "---"] * (len(heads) - 1)]
    lines = [heads, rule, *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)
