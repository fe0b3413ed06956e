"""CSV files that benchmarks add rows to, run by run."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from star_kv_sglang.errors import ConfigError


def append_rows(path: Path, rows: Sequence[Mapping[str, Any]], names: Sequence[str] = ()) -> None:
    """Append rows, with a header where the file is new.

    Args:
        path: The file; folders above it are made.
        rows: All with the same names; nothing is written where there are neither rows nor names.
        names: Columns of the file, for a header before there are rows; by default the rows'.

    Raises:
        ConfigError: The file has other columns.
    """
    names = list(names or (rows[0] if rows else ()))
    if not names:
        return
    found = header(path)
    if found and found != names:
        raise ConfigError(f"{path} has the columns {','.join(found)}, these rows {','.join(names)}: name another file")
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
