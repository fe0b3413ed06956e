"""Chromium for the tests of pages, and what is asked of every page."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from playwright.sync_api import Browser, Page, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--no-first-run",
)  # fmt: skip

OVERLAPS = """() => {
  const boxes = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    if (!node.data.trim() || !node.parentElement.checkVisibility()) continue;
    const range = document.createRange();
    range.selectNodeContents(node);
    for (const found of range.getClientRects()) {
      let [left, top, right, bottom] = [found.left, found.top, found.right, found.bottom];
      for (let at = node.parentElement; at; at = at.parentElement) {
        if (getComputedStyle(at).overflowY === "visible") continue;
        const clip = at.getBoundingClientRect();
        left = Math.max(left, clip.left); right = Math.min(right, clip.right);
        top = Math.max(top, clip.top); bottom = Math.min(bottom, clip.bottom);
      }
      if (right - left > 1 && bottom - top > 1) boxes.push({node, left, top, right, bottom});
    }
  }
  const found = [];
  for (let i = 0; i < boxes.length; i++) for (let j = 0; j < i; j++) {
    const a = boxes[i], b = boxes[j];
    if (a.node.parentElement.closest("thead") || b.node.parentElement.closest("thead")) continue;
    const wide = Math.min(a.right, b.right) - Math.max(a.left, b.left);
    const high = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
    if (a.node !== b.node && wide > 1 && high > 4) found.push(a.node.data.trim() + " / " + b.node.data.trim());
  }
  return found;
}"""
"""Pairs of texts in sight that lie on each other. Heads of scrolling tables lie on their rows by design."""

CUT_OFF = """(selector) => [...document.querySelectorAll(selector)]
  .filter((at) => at.checkVisibility() && at.scrollWidth > at.clientWidth + 1).map((at) => at.textContent)"""
"""Elements whose text is wider than they are."""


@contextmanager
def chromium() -> Iterator[Browser]:
    """A browser; `scripts/install_browser.sh` brings one."""
    path = next(filter(None, map(shutil.which, NAMES)), None)
    assert path is not None, "needs a Chromium browser: bash scripts/install_browser.sh"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(FLAGS))
        yield browser
        browser.close()


@contextmanager
def page_of(
    browser: Browser, url: str, *, width: int = 1280, height: int = 900, scheme: Any = "light", silent: bool = True
) -> Iterator[Page]:
    """A page; at its end its console must have been silent.

    Args:
        browser: The browser.
        url: Of the page.
        width, height: Of the window.
        scheme: "light" or "dark".
        silent: Whether the console must stay empty; a server that goes away leaves a line there.
    """
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
    page = context.new_page()
    page.set_default_timeout(20_000)
    told: list[str] = []
    page.on("console", lambda message: told.append(f"{message.type}: {message.text}") if silent else None)
    page.on("pageerror", lambda error: told.append(f"error: {error}"))
    page.on("request", lambda request: told.append(request.url) if not request.url.startswith((url, "data:")) else None)
    page.goto(url)
    try:
        yield page
        assert told == []
    finally:
        context.close()
