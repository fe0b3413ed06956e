"""A page as a script reads it, and the few moves that scripts are made of."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from star_kv_sglang.tools.actions import Action, ActionKind
from star_kv_sglang.tools.browser.elements import PageElement
from star_kv_sglang.tools.rollout.agent import NoActionError


class NoMoveError(NoActionError):
    """A page holds nothing that a script looks for."""


@dataclass(frozen=True, slots=True)
class ScriptPage:
    """A page.

    Attributes:
        goal: The task, in words.
        elements: Of the page, in document order.
    """

    goal: str
    elements: Sequence[PageElement]

    def find(self, wanted: Callable[[PageElement], bool], what: str) -> PageElement:
        """The first element that is shown and wanted.

        Raises:
            NoMoveError: There is none.
        """
        found = self.all(wanted)
        if not found:
            raise NoMoveError(f"the page has no {what}")
        return found[0]

    def all(self, wanted: Callable[[PageElement], bool]) -> list[PageElement]:
        """All elements that are shown and wanted."""
        return [element for element in self.elements if element.shown and wanted(element)]

    def by_id(self, name: str) -> PageElement:
        """The element of an id."""
        return self.find(lambda element: element.id == name, f"element #{name}")

    def button(self, text: str) -> PageElement:
        """The button with this text."""
        return self.find(lambda element: element.tag == "button" and element.text == text, f"button {text!r}")

    def quoted(self) -> list[str]:
        """What the goal has in double quotes."""
        return re.findall(r'"([^"]*)"', self.goal)

    def match(self, pattern: str) -> re.Match[str]:
        """The goal, or the part of it that a pattern means.

        Raises:
            NoMoveError: It is another goal.
        """
        found = re.search(pattern, self.goal)
        if found is None:
            raise NoMoveError(f"the goal {self.goal!r} is not one that the script knows")
        return found


Script = Callable[[ScriptPage], Action]
"""The next action in a page. It follows from the page alone, so a script needs no memory."""


def click(element: PageElement) -> Action:
    """Click an element, or bring it into view first."""
    if element.in_view:
        return Action(ActionKind.CLICK, point=element.point)
    return Action(ActionKind.SCROLL, point=(0.5, 0.6), direction="down" if element.point[1] >= 1 else "up")


def fill(field: PageElement, text: str) -> Action | None:
    """The next move towards a text in a field; None when it is there."""
    if field.value == text:
        return None
    if not field.focused:
        return click(field)
    if field.value:
        return Action(ActionKind.KEYS, keys=("ctrl", "a", "backspace"))
    return Action(ActionKind.WRITE, text=text)


def fill_and_submit(page: ScriptPage, texts: Sequence[tuple[PageElement, str]], submit: PageElement) -> Action:
    """Fields in order, then the button."""
    for field, text in texts:
        move = fill(field, text)
        if move is not None:
            return move
    return click(submit)
