"""Pages that want something chosen, then a button."""

from __future__ import annotations

import re
from typing import Final

from star_kv_sglang.tools.actions import Action, ActionKind
from star_kv_sglang.tools.browser.elements import PageElement
from star_kv_sglang.tools.browser.scripts.page import Script, ScriptPage, click, fill_and_submit


def check_boxes(page: ScriptPage) -> Action:
    """``Select aZ, bY and click Submit.``"""
    named = page.match(r"Select (.*) and click Submit")[1]
    wanted = set() if named == "nothing" else {name.strip() for name in named.split(",")}
    boxes = page.all(lambda element: element.type == "checkbox")
    wrong = [box for box in boxes if (box.label in wanted) != box.checked]
    return click(wrong[0] if wrong else page.by_id("subbtn"))


def choose_radio(page: ScriptPage) -> Action:
    """``Select aZ and click Submit.``"""
    wanted = page.match(r"Select (.*) and click Submit")[1]
    option = page.find(lambda element: element.type == "radio" and element.label == wanted, f"option {wanted!r}")
    return click(page.by_id("subbtn") if option.checked else option)


def choose_from_list(page: ScriptPage) -> Action:
    """``Select Gerda from the list and click Submit.`` By keys: an open list is no part of the page."""
    wanted = page.match(r"Select (.*) from the list")[1]
    choice = page.find(lambda element: element.tag == "select", "list")
    if choice.value == wanted:
        return click(page.button("Submit"))
    if not choice.focused:
        return Action(ActionKind.KEYS, keys=("tab",))
    steps = choice.options.index(wanted) - choice.options.index(choice.value)
    return Action(ActionKind.KEYS, keys=("down" if steps > 0 else "up",) * abs(steps))


def use_spinner(page: ScriptPage) -> Action:
    """``Select -3 with the spinner and hit Submit.`` It takes no letters, but arrows."""
    wanted = int(page.match(r"Select (-?\d+) with")[1])
    field = page.by_id("spinner")
    steps = wanted - int(field.value or 0)
    if steps == 0:
        return click(page.by_id("subbtn"))
    arrow = "ui-spinner-up" if steps > 0 else "ui-spinner-down"
    return click(page.find(lambda element: arrow in element.classes, "arrow of the spinner"))


def guess_number(page: ScriptPage) -> Action:
    """``Guess the number between 0-9 ...``: from 5, a step at a time, since the page tells of the last guess only."""
    field = page.find(lambda element: element.type == "number", "field")
    told = re.search(r"(higher|lower) than (\d+)", page.by_id("feedback").text)
    guess = 5 if told is None else int(told[2]) + (1 if told[1] == "higher" else -1)
    return fill_and_submit(page, [(field, str(guess))], page.by_id("subbtn"))


def navigate_tree(page: ScriptPage) -> Action:
    """``... Find and click on the folder or file named "Ann".``"""
    wanted = page.quoted()[0]
    names = page.all(lambda e: e.tag == "span" and bool({"file", "folder"} & set(e.classes)))
    here = [name for name in names if name.text == wanted]
    if here:
        return click(here[0])
    closed = page.all(lambda e: e.tag == "li" and "expandable" in e.classes)
    folders = [n for n in names if "folder" in n.classes and any(_first_line(n, item) for item in closed)]
    return click(folders[0])


def _first_line(name: PageElement, item: PageElement) -> bool:
    """Whether a name is the one of a list item, and not one further down in it."""
    return 0 <= name.box[1] - item.box[1] < 10 and 0 <= name.box[0] - item.box[0] < 24


CHOOSING: Final[dict[str, Script]] = {
    "click-checkboxes": check_boxes,
    "click-checkboxes-large": check_boxes,
    "click-checkboxes-transfer": check_boxes,
    "click-option": choose_radio,
    "choose-list": choose_from_list,
    "use-spinner": use_spinner,
    "guess-number": guess_number,
    "navigate-tree": navigate_tree,
}
"""The scripts by task."""
