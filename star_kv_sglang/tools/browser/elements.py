"""What stands in a page, as a script sees it: boxes with texts, values and states."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from star_kv_sglang.tools.actions import Point

PAGE_ELEMENTS: Final = """() => {
  const squeezed = (text) => (text || '').replace(/\\s+/g, ' ').trim();
  const beside = '#reward-display, #reward-display *, #click-canvas, #sync-task-cover';
  const skipped = `#query, #query *, ${beside}, script, style`;
  return [...document.body.querySelectorAll('*')].filter((e) => !e.matches(skipped)).map((e) => {
    // A link that goes over two lines has a box whose middle may lie beside it.
    const box = e.getClientRects()[0] || e.getBoundingClientRect();
    const style = getComputedStyle(e);
    return {
      tag: e.tagName.toLowerCase(),
      id: e.id,
      classes: typeof e.className === 'string' ? e.className : '',
      type: (e.getAttribute('data-type') || e.type || '').toLowerCase(),
      text: squeezed(e.innerText === undefined ? e.textContent : e.innerText),
      label: squeezed(e.labels && e.labels.length ? e.labels[0].innerText : ''),
      value: e.tagName === 'SELECT' ? squeezed(e.options[e.selectedIndex]?.text) : String(e.value ?? ''),
      options: e.tagName === 'SELECT' ? [...e.options].map((o) => squeezed(o.text)) : [],
      colour: e.getAttribute('data-color') || '',
      checked: Boolean(e.checked),
      disabled: Boolean(e.disabled),
      focused: document.activeElement === e,
      shown: box.width > 0 && box.height > 0 && style.visibility !== 'hidden',
      box: [box.x, box.y, box.width, box.height],
    };
  });
}"""
"""Returns the elements of a page in document order, without the task's text."""


@dataclass(frozen=True, slots=True)
class PageElement:
    """One element.

    Attributes:
        tag, id, classes: As in the page.
        type: ``data-type`` or the type of an input.
        text: What it shows, with single spaces.
        label: Of an input.
        value: Of an input; of a list, the text of the chosen option.
        options: Of a list.
        colour: Its ``data-color``.
        checked, disabled, focused, shown: Its state.
        point: Its middle, relative to the screen.
        box: Left, top, width and height in CSS pixels.
    """

    tag: str
    id: str
    classes: tuple[str, ...]
    type: str
    text: str
    label: str
    value: str
    options: tuple[str, ...]
    colour: str
    checked: bool
    disabled: bool
    focused: bool
    shown: bool
    point: Point
    box: tuple[float, float, float, float]

    @property
    def in_view(self) -> bool:
        """Whether its middle is on the screen."""
        return self.shown and all(0 <= value < 1 for value in self.point)


def read_elements(rows: Iterable[Mapping[str, Any]], width: int, height: int) -> tuple[PageElement, ...]:
    """Elements from what `PAGE_ELEMENTS` returns, for a viewport of so many CSS pixels."""
    return tuple(_element(row, width, height) for row in rows)


def _element(row: Mapping[str, Any], width: int, height: int) -> PageElement:
    x, y, w, h = (float(value) for value in row["box"])
    return PageElement(
        **{
            **row,
            "classes": tuple(row["classes"].split()),
            "options": tuple(row["options"]),
            "box": (x, y, w, h),
            "point": ((x + w / 2) / width, (y + h / 2) / height),
        }
    )
