"""CSV files that benchmarks add rows to, run by run."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def append_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Append rows, with a header where the file is new.

    Args:
        path: The file; folders above it are made.
        rows: All with the same names; nothing is written where there are none.

    Raises:
        ValueError: The file has other columns.
    """
    if not rows:
        return
    names = list(rows[0])
    found = header(path)
    if found and found != names:
        raise ValueError(f"{path} has the columns {','.join(found)}, these rows {','.join(names)}: name another file")
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names)
        if not found:
            writer.writeheader()
        writer.writerows(rows)


def header(path: Path) -> list[str]:
    """Names of a CSV's columns; empty where there is no file."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return next(csv.reader(file), [])
