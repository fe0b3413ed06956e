"""Pages that want the right thing clicked."""

from __future__ import annotations

from typing import Final

from star_kv_sglang.tools.actions import Action
from star_kv_sglang.tools.browser.elements import PageElement
from star_kv_sglang.tools.browser.scripts.page import Script, ScriptPage, click


def click_the_button(page: ScriptPage) -> Action:
    """``Click the button.``"""
    return click(page.by_id("subbtn"))


def click_named_button(page: ScriptPage) -> Action:
    """``Click button ONE.``"""
    return click(page.button(page.match(r"button (\w+)")[1]))


def click_quoted_button(page: ScriptPage) -> Action:
    """``Click on the "ok" button.``"""
    return click(page.button(page.quoted()[0]))


def click_in_sequence(page: ScriptPage) -> Action:
    """``Click button ONE, then click button TWO.`` A button that was clicked has the focus."""
    one, two = page.by_id("subbtn"), page.by_id("subbtn2")
    return click(two if one.focused else one)


def click_link(page: ScriptPage) -> Action:
    """``Click on the link "amet".``"""
    return click(_link(page)[0])


def click_widget(page: ScriptPage) -> Action:
    """``Click on a "textarea" widget.``"""
    wanted = page.quoted()[0]
    return click(page.find(lambda element: element.type == wanted, f"{wanted} widget"))


def close_dialog(page: ScriptPage) -> Action:
    """``Close the dialog box by clicking the "x".``"""
    return click(page.find(_is_close_button, "x of a dialog"))


def click_dialog_button(page: ScriptPage) -> Action:
    """``Click the button in the dialog box labeled "OK".``"""
    wanted = page.quoted()[0]
    return close_dialog(page) if wanted == "x" else click(page.button(wanted))


def click_tab(page: ScriptPage) -> Action:
    """``Click on Tab #2.``"""
    name = page.match(r"Tab #\d+")[0]
    return click(page.find(lambda element: element.tag == "a" and element.text == name, name))


def find_link_in_tabs(page: ScriptPage) -> Action:
    """``Switch between the tabs to find and click on the link "amet".``"""
    links = _link(page)
    if links:
        return click(links[0])
    # Tabs are tried in turn: the one that is open tells which comes next.
    tabs = page.all(lambda element: element.tag == "li" and "ui-tabs-tab" in element.classes)
    active = next((index for index, tab in enumerate(tabs) if "ui-tabs-active" in tab.classes), -1)
    return click(tabs[(active + 1) % len(tabs)])


def expand_and_submit(page: ScriptPage) -> Action:
    """``Expand the section below and click submit.``"""
    header = page.find(_is_header, "section")
    return click(page.by_id("subbtn") if _is_open(header) else header)


def find_link_in_sections(page: ScriptPage) -> Action:
    """``Expand the sections below, to find and click on the link "amet".``"""
    links = _link(page)
    if links:
        return click(links[0])
    headers = page.all(_is_header)
    opened = next((index for index, header in enumerate(headers) if _is_open(header)), -1)
    return click(headers[(opened + 1) % len(headers)])


def click_colour(page: ScriptPage) -> Action:
    """``Click on the red colored box.``"""
    colour = page.match(r"the (\w+) colored")[1]
    return click(page.find(lambda element: element.colour == colour, f"{colour} box"))


def mark_shades(page: ScriptPage) -> Action:
    """``Select all the shades of blue and press Submit.``"""
    colour = page.match(r"shades of (\w+)")[1]
    wrong = page.all(lambda e: e.colour != "" and (e.colour == colour) != ("selected" in e.classes))
    return click(wrong[0] if wrong else page.by_id("submit"))


def mark_odd_or_even(page: ScriptPage) -> Action:
    """``Mark the numbers below as odd or even and press submit when done.``"""
    numbers = page.all(lambda element: "display-number" in element.classes)
    buttons = page.all(lambda element: element.tag == "button")
    for number in numbers:
        wanted = "odd" if int(number.text) % 2 else "even"
        button = next(e for e in buttons if wanted in e.classes and _beside(e, number))
        if "selected" not in button.classes:
            return click(button)
    return click(page.by_id("submit"))


def _beside(one: PageElement, other: PageElement) -> bool:
    return abs(one.point[1] - other.point[1]) * 2 < (one.box[3] + other.box[3]) / 210


def _link(page: ScriptPage) -> list[PageElement]:
    wanted = page.quoted()[0]
    return page.all(lambda element: "alink" in element.classes and element.text == wanted)


def _is_close_button(element: PageElement) -> bool:
    return element.tag == "button" and "ui-dialog-titlebar-close" in element.classes


def _is_header(element: PageElement) -> bool:
    return "ui-accordion-header" in element.classes


def _is_open(header: PageElement) -> bool:
    return "ui-accordion-header-active" in header.classes


CLICKING: Final[dict[str, Script]] = {
    "click-test": click_the_button,
    "click-test-2": click_named_button,
    "click-test-transfer": click_named_button,
    "click-button": click_quoted_button,
    "unicode-test": click_quoted_button,
    "click-button-sequence": click_in_sequence,
    "click-link": click_link,
    "click-widget": click_widget,
    "click-dialog": close_dialog,
    "click-dialog-2": click_dialog_button,
    "click-tab": click_tab,
    "click-tab-2": find_link_in_tabs,
    "click-tab-2-easy": find_link_in_tabs,
    "click-tab-2-medium": find_link_in_tabs,
    "click-tab-2-hard": find_link_in_tabs,
    "click-collapsible": expand_and_submit,
    "click-collapsible-nodelay": expand_and_submit,
    "click-collapsible-2": find_link_in_sections,
    "click-collapsible-2-nodelay": find_link_in_sections,
    "click-color": click_colour,
    "click-shades": mark_shades,
    "odd-or-even": mark_odd_or_even,
}
"""The scripts by task."""
