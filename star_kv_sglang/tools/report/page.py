"""One self-contained HTML page: a table, and screenshots with the tokens that were kept."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import jinja2
from PIL import Image

from star_kv_sglang.tools.rollout.summary import Row


@dataclass(frozen=True)
class Picture:
    """A picture and what it shows."""

    image: Image.Image
    title: str
    caption: str

    @property
    def data_url(self) -> str:
        """The picture as a PNG in a ``data:`` URL."""
        buffer = io.BytesIO()
        self.image.save(buffer, format="PNG", optimize=True)
        return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def render_page(
    *, title: str, setup: Sequence[str], columns: Sequence[str], rows: Sequence[Row], pictures: Sequence[Picture]
) -> str:
    """The page's HTML; it refers to nothing outside itself.

    Args:
        setup: lines that say what was run.
        columns: headings of the table's columns behind the first.
        rows: a cell for each column.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("star_kv_sglang.tools.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    template = environment.get_template("report.html.j2")
    return template.render(title=title, setup=setup, columns=columns, rows=rows, pictures=pictures)
