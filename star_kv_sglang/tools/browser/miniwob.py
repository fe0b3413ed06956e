"""MiniWoB++ as a suite of rollouts: each task is a page of 160 x 210 CSS pixels with a task text on top.

The page's clock stands still while an agent thinks: every action takes the same time of the page, so the page's own
reward, which falls with time, and what it moves are the same on a fast machine and a slow one.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from playwright.async_api import Error as PlaywrightError
from playwright.async_api import FloatRect, Page
from playwright.async_api import TimeoutError as PlaywrightTimeoutError

from star_kv_sglang.tools.actions import Action
from star_kv_sglang.tools.browser.chromium import Chromium, running_chromium
from star_kv_sglang.tools.browser.elements import PAGE_ELEMENTS, PageElement, read_elements
from star_kv_sglang.tools.browser.extra import find_chromium, pages_folder, require_browser_libraries
from star_kv_sglang.tools.browser.gestures import Hands
from star_kv_sglang.tools.browser.site import serving_pages
from star_kv_sglang.tools.rollout.environment import EnvironmentFault, Score

WIDTH: Final = 160
HEIGHT: Final = 210
WINDOW: Final = (500, 320)
"""Of the browser, as MiniWoB++ has it: in a smaller one, pages scroll to what is beside the task."""
EPISODE_MS: Final = 60_000
"""Of the page's clock, instead of the page's own limit, which is meant for people and short scripts."""
ACTION_MS: Final = 500
"""Of the page's clock that an action takes."""
SCALE: Final = 2.0
"""Pixels of a screenshot for each CSS pixel: the pages' letters are small."""

_SHOWN: Final[FloatRect] = {"x": 0, "y": 0, "width": WIDTH, "height": HEIGHT}
_LOAD_MS: Final = 15_000
_PAUSE_AT_S: Final = 3600
"""Where the page's clock stands. It runs from 0 until it is told to stop there, and cannot be told to go back: this is
later than any machine takes between the two words."""
_READY_TRIES: Final = 20
# What a page draws from before its episode is seeded: some lay out at load.
_SEED_AT_LOAD: Final = "let s = %d; Math.random = () => (s = (s * 16807) %% 2147483647) / 2147483647;"
_BEGIN: Final = """([seed, time]) => {
  core.EPISODE_MAX_TIME = time;
  if (window.jQuery) jQuery.fx.off = true;
  Math.seedrandom(seed);
  core.startEpisodeReal();
}"""

# Pictures that only the style sheets name are fetched when something first needs them, at any time.
_FETCH_PICTURES: Final = """async () => {
  const urls = new Set();
  for (const sheet of document.styleSheets) {
    for (const rule of sheet.cssRules) {
      for (const found of rule.cssText.matchAll(/url\\("?([^")]+)"?\\)/g)) {
        urls.add(new URL(found[1], sheet.href || document.baseURI).href);
      }
    }
  }
  window.starKvPictures = [...urls].map((url) => Object.assign(new Image(), {src: url}));
  await Promise.allSettled(window.starKvPictures.map((picture) => picture.decode()));
}"""


class MiniWobEnvironment:
    """An episode in a page.

    Args:
        page: Of a browser.
        url: Of the task.
        load_ms: Milliseconds that it may take to load.
    """

    def __init__(self, page: Page, url: str, load_ms: int = _LOAD_MS) -> None:
        self._page = page
        self._url = url
        self._load_ms = load_ms
        self._hands = Hands(page, WIDTH, HEIGHT)

    async def reset(self, seed: int) -> str:
        page = self._page
        await page.add_init_script(_SEED_AT_LOAD % (seed % 2147483646 + 1))
        # Before the page loads, which takes the machine's time.
        await page.clock.install(time=0)
        await page.clock.pause_at(_PAUSE_AT_S)
        try:
            await page.goto(self._url, timeout=self._load_ms)
        except PlaywrightTimeoutError as error:
            raise EnvironmentFault(f"{self._url} has not loaded within {self._load_ms / 1000:g} s") from error
        except PlaywrightError as error:
            raise EnvironmentFault(f"{self._url} does not load: {error.message.splitlines()[0]}") from error
        if not await page.evaluate("() => typeof core === 'object' && typeof genProblem === 'function'"):
            raise EnvironmentFault(f"{self._url} is no page of MiniWoB++")
        await page.evaluate(_FETCH_PICTURES)
        await page.evaluate(_BEGIN, [str(seed), EPISODE_MS])
        for _ in range(_READY_TRIES):
            await page.clock.run_for(ACTION_MS)
            if await page.evaluate("() => WOB_TASK_READY"):
                return str(await page.evaluate("() => core.getUtterance()"))
        raise EnvironmentFault(f"{self._url} is loaded and does not get ready")

    async def screenshot(self) -> bytes:
        return await self._page.screenshot(animations="disabled", caret="hide", clip=_SHOWN)

    async def step(self, action: Action) -> None:
        await self._hands.do(action)
        await self._page.clock.run_for(ACTION_MS)

    async def score(self) -> Score:
        reward, done = await self._page.evaluate("() => [WOB_REWARD_GLOBAL, WOB_DONE_GLOBAL]")
        return Score(float(reward), bool(done))

    async def elements(self) -> tuple[PageElement, ...]:
        """What stands in the page, for agents that look into it."""
        return read_elements(await self._page.evaluate(PAGE_ELEMENTS), WIDTH, HEIGHT)


class MiniWobSuite:
    """The pages of MiniWoB++; made by :func:`miniwob_suite`."""

    name = "miniwob"

    def __init__(self, chromium: Chromium, site: str, tasks: Sequence[str]) -> None:
        self.chromium = chromium
        self._site = site
        self.tasks = tuple(tasks)

    @asynccontextmanager
    async def open(self, task: str) -> AsyncIterator[MiniWobEnvironment]:
        async with self.chromium.page(*WINDOW, SCALE) as page:
            yield MiniWobEnvironment(page, f"{self._site}/miniwob/{task}.html")


@asynccontextmanager
async def miniwob_suite(chromium: Path | None = None) -> AsyncIterator[MiniWobSuite]:
    """The suite, with its pages served and a browser that starts when the first branch needs it.

    Args:
        chromium: The browser's program; by default the first on the path.

    Raises:
        RolloutError: A library or the browser is missing; the message says what to install.
    """
    require_browser_libraries()
    program, folder = find_chromium(chromium), pages_folder()
    tasks = sorted(file.stem for file in (folder / "miniwob").glob("*.html"))
    with serving_pages(folder) as site:
        async with running_chromium(program) as running:
            yield MiniWobSuite(running, site, tasks)
