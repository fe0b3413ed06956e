"""One self-contained HTML page: a table, a chart, screenshots beside what was kept of them, questions and answers."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Final

import jinja2
from PIL import Image

from star_kv_sglang.tools.rollout.summary import Row

GLOSSARY: Final = {
    "branch": "One trajectory of the agent. All branches begin with the same task and the same first screenshot.",
    "turn": "One screenshot, and the questions that are asked about what has been shown so far.",
    "token": "A piece of the prompt. A screenshot is a grid of them; each takes one slot of the KV cache.",
    "shared": "Slots that several branches use. They stay whole.",
    "private": "Slots that one branch alone uses. What is pruned is chosen among them.",
    "pruned": "Tokens whose keys and values were dropped after their turn. Positions do not change.",
    "budget": "Share of a branch's private screenshot tokens that stays.",
    "radix hit rate": "Share of all prompt tokens that the server found in its cache.",
    "recall (moved)": "Questions about an earlier screen whose answer can no longer be seen on the current one.",
}
_WIDTH, _HEIGHT = 720, 240
_LEFT, _BOTTOM, _TOP, _RIGHT = 56, 34, 12, 12


def environment(package: str) -> jinja2.Environment:
    """Templates of a package's pages: what is recorded is escaped, and a name that is missing is an error."""
    return jinja2.Environment(
        loader=jinja2.PackageLoader(package),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def base_style() -> str:
    """The look that all pages have."""
    return (files(__package__) / "static" / "base.css").read_text("utf-8")


@dataclass(frozen=True)
class Picture:
    """A picture and what it shows.

    Attributes:
        image: the picture.
        title: its heading.
        caption: what to see in it.
        original: what it was drawn on; stands beside it.
    """

    image: Image.Image
    title: str
    caption: str
    original: Image.Image | None = None

    @property
    def data_url(self) -> str:
        """The picture as a PNG in a ``data:`` URL."""
        return _data_url(self.image)

    @property
    def original_url(self) -> str | None:
        """What it was drawn on, likewise."""
        return None if self.original is None else _data_url(self.original)


@dataclass(frozen=True)
class Line:
    """A line of a chart: its name, its colour (a variable of the stylesheet) and a value for each turn."""

    name: str
    colour: str
    values: Sequence[float]


@dataclass(frozen=True)
class Chart:
    """Values over turns, from 1.

    Attributes:
        title: its heading.
        caption: what is drawn.
        lines: at least one, all of the same length.
    """

    title: str
    caption: str
    lines: Sequence[Line]
    width: int = field(default=_WIDTH, init=False)
    height: int = field(default=_HEIGHT, init=False)

    def _y(self, value: float) -> float:
        top = self.ticks()[-1][0]
        return _HEIGHT - _BOTTOM - (_HEIGHT - _BOTTOM - _TOP) * value / top

    def _x(self, index: int) -> float:
        steps = max(1, len(self.lines[0].values) - 1)
        return _LEFT + 18 + (_WIDTH - _LEFT - _RIGHT - 36) * index / steps

    def ticks(self) -> list[tuple[float, float]]:
        """Value and height of each horizontal line: round numbers from 0 to above the largest value."""
        largest = max(1.0, *(value for line in self.lines for value in line.values))
        step = next(
            s for exponent in range(12) for s in (10**exponent, 2 * 10**exponent, 5 * 10**exponent) if 4 * s >= largest
        )
        values = [float(step * number) for number in range(-(-int(largest) // step) + 1)]
        return [(value, _HEIGHT - _BOTTOM - (_HEIGHT - _BOTTOM - _TOP) * value / values[-1]) for value in values]

    def points(self, line: Line) -> list[tuple[float, float]]:
        """Where a line's values lie in the picture, in pixels."""
        return [(round(self._x(index), 1), round(self._y(value), 1)) for index, value in enumerate(line.values)]

    @property
    def left(self) -> int:
        """Where the horizontal lines begin."""
        return _LEFT


@dataclass(frozen=True)
class Exchange:
    """A question and what each server answered.

    Attributes:
        turn: from 1.
        question: as it was asked.
        expected: the reference answer.
        answers: of each server: what it said, and whether that counts.
    """

    turn: int
    question: str
    expected: str
    answers: Sequence[tuple[str, bool]]


def render_page(
    *,
    title: str,
    setup: Sequence[str],
    columns: Sequence[str],
    rows: Sequence[Row],
    pictures: Sequence[Picture],
    chart: Chart | None = None,
    exchanges: Sequence[Exchange] = (),
    versions: Sequence[tuple[str, str]] = (),
) -> str:
    """The page's HTML; it refers to nothing outside itself.

    Args:
        setup: lines that say what was run.
        columns: headings of the table's columns behind the first.
        rows: a cell for each column.
        pictures: screenshots with what was kept.
        chart: values over turns.
        exchanges: what was asked and answered, an answer for each column.
        versions: what was run, by name.
    """
    template = environment("star_kv_sglang.tools.report").get_template("report.html.j2")
    return template.render(
        title=title, setup=setup, columns=columns, rows=rows, pictures=pictures, chart=chart, exchanges=exchanges,
        versions=versions, glossary=GLOSSARY, style=base_style(),
    )  # fmt: skip


def _data_url(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
