"""Figures of the documentation by name: each is looked up in the rows that were measured.

A page holds `<!-- figure NAME -->9.64<!-- /figure -->`; `docs/figures.toml` says where NAME comes from:

    file    a CSV of benchmarks/
    where   columns and their values, as text
    run     the beginning of a date: only rows of that run
    column  which column, "value" if not said
    beside  a policy: only runs that measured it too, so that two figures of a comparison are of one run
    over    another figure, by which this one's value is divided
    scale   a factor, 1 if not said
    format  how it is written, "{:.2f}" if not said

The newest run that has such a row counts, so that a figure that was measured again cannot stay old.
"""

from __future__ import annotations

import csv
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent.parent
FIGURES = ROOT / "docs" / "figures.toml"
MARKED = re.compile(r"<!-- figure (?P<name>[\w.-]+) -->(?P<text>.*?)<!-- /figure -->")


class FigureError(LookupError):
    """A figure that no row is behind."""


@dataclass(frozen=True)
class Figure:
    """Where a figure comes from; the fields are those of the file above."""

    name: str
    file: str
    where: Mapping[str, str]
    run: str = ""
    column: str = "value"
    beside: str | None = None
    over: str | None = None
    scale: float = 1.0
    format: str = "{:.2f}"

    def row(self) -> Mapping[str, str]:
        """The newest row.

        Raises:
            FigureError: There is none.
        """
        rows = [row for row in rows_of(self.file) if row.get("partial") != "True"]
        found = [row for row in rows if _fits(row, self.where) and _date(row).startswith(self.run)]
        if self.beside is not None:
            others = {**self.where, "policy": self.beside}
            runs = {_date(row) for row in rows if _fits(row, others)}
            found = [row for row in found if _date(row) in runs]
        if not found:
            raise FigureError(f"figure {self.name}: no row of benchmarks/{self.file} has {dict(self.where)}")
        return max(found, key=_date)

    def value(self) -> float:
        """Its number, scaled and divided."""
        number = float(self.row()[self.column]) * self.scale
        return number if self.over is None else number / figure(self.over).value()

    def text(self) -> str:
        """As pages show it."""
        return self.format.format(self.value())


def _date(row: Mapping[str, str]) -> str:
    """When it was measured; kernels have another name for it."""
    return row["date"] if "date" in row else row["time"]


def _fits(row: Mapping[str, str], where: Mapping[str, str]) -> bool:
    return all(row[column] == value for column, value in where.items())


@cache
def rows_of(file: str) -> tuple[Mapping[str, str], ...]:
    """All rows of a CSV of benchmarks/."""
    with (ROOT / "benchmarks" / file).open(encoding="utf-8", newline="") as stream:
        return tuple(csv.DictReader(stream))


@cache
def figures() -> Mapping[str, Figure]:
    """All figures that have a name."""
    said = tomllib.loads(FIGURES.read_text(encoding="utf-8"))
    return {name: Figure(name, **values) for name, values in said.items()}


def figure(name: str) -> Figure:
    """One of them.

    Raises:
        FigureError: Nobody has said where it comes from.
    """
    if name not in figures():
        raise FigureError(f"figure {name} is not in {FIGURES.relative_to(ROOT)}")
    return figures()[name]


def with_figures(text: str) -> str:
    """A page with the text of every marked figure made anew."""
    return MARKED.sub(
        lambda match: f"<!-- figure {match['name']} -->{figure(match['name']).text()}<!-- /figure -->", text
    )
