"""Pages that want something typed."""

from __future__ import annotations

import re
from typing import Final

from star_kv_sglang.tools.actions import Action, ActionKind
from star_kv_sglang.tools.browser.elements import PageElement
from star_kv_sglang.tools.browser.scripts.page import Script, ScriptPage, click, fill_and_submit

_SUBMIT: Final = "subbtn"


def enter_quoted(page: ScriptPage) -> Action:
    """``Enter "Ann" into the text field and press Submit.``"""
    return _enter(page, page.by_id("tt"), page.quoted()[0])


def enter_in_case(page: ScriptPage) -> Action:
    """``Type "ann" in all upper case letters in the text input and press Submit.``"""
    text = page.quoted()[0]
    return _enter(page, page.by_id("tt"), text.upper() if "upper case" in page.goal else text.lower())


def enter_password(page: ScriptPage) -> Action:
    """``Enter the password "Xy" into both text fields and press submit.``"""
    text = page.quoted()[0]
    return fill_and_submit(page, [(page.by_id("password"), text), (page.by_id("verify"), text)], page.by_id(_SUBMIT))


def log_in(page: ScriptPage) -> Action:
    """``Enter the username "ann" and the password "Xy" into the text fields and press login.``"""
    popup = page.all(lambda element: element.id == "popup-cancel")
    if popup:
        return click(popup[0])
    user, password = page.quoted()[:2]
    return fill_and_submit(
        page, [(page.by_id("username"), user), (page.by_id("password"), password)], page.by_id(_SUBMIT)
    )


def focus_text(page: ScriptPage) -> Action:
    """``Focus into the textbox.``, or into the 2nd of several."""
    fields = page.all(lambda element: element.tag == "input")
    place = re.search(r"the (\d)\w\w input", page.goal)
    return click(fields[int(place[1]) - 1 if place else 0])


def calculate(page: ScriptPage) -> Action:
    """``Solve the math problem ...``: ``3 x 4 =``, where x multiplies."""
    first, sign, second = _formula(page, r"(-?\d+) ([-+x]) (-?\d+) =")
    a, b = int(first), int(second)
    return _enter(page, page.by_id("math-answer"), str({"+": a + b, "-": a - b, "x": a * b}[sign]))


def solve_for_x(page: ScriptPage) -> Action:
    """``Solve for x ...``: ``x - 3 = 40`` or ``3 + x = 40``."""
    first, sign, second, total = _formula(page, r"(x|\d+) ([-+]) (x|\d+) = (-?\d+)")
    known, result = int(second if first == "x" else first), int(total)
    answers = {"+": result - known, "-": result + known if first == "x" else known - result}
    return _enter(page, page.by_id("math-answer"), str(answers[sign]))


def read_table(page: ScriptPage) -> Action:
    """``Enter the value of Country into the text field and press Submit.``"""
    key = page.match(r"value of (.*) into")[1]
    cells = page.all(lambda element: element.tag == "td")
    place = next(index for index, cell in enumerate(cells) if index % 2 == 0 and cell.text == key)
    return _enter(page, page.by_id("tt"), cells[place + 1].text)


def find_word(page: ScriptPage) -> Action:
    """``Find the 3rd word in the paragraph, type that into the textbox ...``"""
    place = int(page.match(r"the (\d+)\w\w word")[1])
    words = page.find(lambda element: element.tag == "p", "paragraph").text.split()
    return _enter(page, page.by_id("answer-input"), re.sub(r"[^a-zA-Z]", "", words[place - 1]))


def read_distorted(page: ScriptPage) -> Action:
    """``Type the text below into the text field and press Submit.``"""
    text = page.by_id("captcha").text.replace(" ", "")
    return _enter(page, page.by_id("tt"), text)


def copy_text(page: ScriptPage) -> Action:
    """``Copy the text in the textarea below, paste it into the textbox and press Submit.``"""
    return _enter(page, page.by_id("answer-input"), page.by_id("to-copy").value)


def enter_date(page: ScriptPage) -> Action:
    """``Enter 06/14/2012 as the date and hit submit.`` A date field takes its parts one after another."""
    month, day, year = page.match(r"(\d+)/(\d+)/(\d+)").groups()
    return _enter_parts(page, f"{year}-{month}-{day}", f"{month}{day}{year}")


def enter_time(page: ScriptPage) -> Action:
    """``Enter 6:42 PM as the time and press submit.``"""
    hour, minute, half = page.match(r"(\d+):(\d+)\s*([AP])M").groups()
    value = f"{int(hour) % 12 + (12 if half == 'P' else 0):02}:{minute}"
    return _enter_parts(page, value, f"{int(hour):02}{minute}{half}M")


def _enter(page: ScriptPage, field: PageElement, text: str) -> Action:
    return fill_and_submit(page, [(field, text)], page.by_id(_SUBMIT))


def _enter_parts(page: ScriptPage, value: str, typed: str) -> Action:
    field = page.by_id("tt")
    if field.value == value:
        return click(page.by_id(_SUBMIT))
    if not field.focused:
        # At its left edge: the first part.
        x, y, _, height = field.box
        return Action(ActionKind.CLICK, point=((x + 8) / 160, (y + height / 2) / 210))
    return Action(ActionKind.WRITE, text=typed)


def _formula(page: ScriptPage, pattern: str) -> tuple[str, ...]:
    found = re.search(pattern, page.by_id("math-problem").text)
    return found.groups() if found else page.match(pattern).groups()


TYPING: Final[dict[str, Script]] = {
    "enter-text": enter_quoted,
    "enter-text-2": enter_in_case,
    "enter-text-dynamic": enter_quoted,
    "enter-password": enter_password,
    "enter-date": enter_date,
    "enter-time": enter_time,
    "login-user": log_in,
    "login-user-popup": log_in,
    "focus-text": focus_text,
    "focus-text-2": focus_text,
    "simple-arithmetic": calculate,
    "simple-algebra": solve_for_x,
    "read-table": read_table,
    "find-word": find_word,
    "text-transform": read_distorted,
    "copy-paste": copy_text,
}
"""The scripts by task."""
