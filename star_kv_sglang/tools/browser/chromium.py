"""One Chromium for all branches, each with a page of its own; another is started where it has crashed or hangs."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import psutil
from playwright.async_api import Browser, Page, Playwright, async_playwright
from playwright.async_api import Error as PlaywrightError

from star_kv_sglang.tools.rollout.environment import EnvironmentFault

_FLAGS: Final = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    # A wheel's scroll is over when its event is.
    "--disable-smooth-scrolling",
)
_LAUNCH_S: Final = 60.0
_OPEN_S: Final = 10.0
_CLOSE_S: Final = 5.0


class Chromium:
    """A browser that can be started again; made by :func:`running_chromium`."""

    def __init__(self, playwright: Playwright, program: Path) -> None:
        self._playwright = playwright
        self._program = program
        self._browser: Browser | None = None
        self._mark = ""
        self._lock = asyncio.Lock()

    @asynccontextmanager
    async def page(self, width: int, height: int, scale: float) -> AsyncIterator[Page]:
        """A page with its own cookies and storage.

        Args:
            width, height: Of the viewport in CSS pixels.
            scale: Pixels of a screenshot for each of them.

        Raises:
            EnvironmentFault: The browser cannot be started.
        """
        page = await self._new_page(width, height, scale)
        try:
            yield page
        finally:
            # A page that hangs, or is gone with its browser, cannot be closed, and need not be.
            with contextlib.suppress(PlaywrightError, TimeoutError):
                async with asyncio.timeout(_CLOSE_S):
                    await page.context.close()

    async def close(self) -> None:
        """End the browser, whatever state it is in."""
        browser, self._browser = self._browser, None
        if browser is not None:
            with contextlib.suppress(PlaywrightError, TimeoutError):
                async with asyncio.timeout(_CLOSE_S):
                    await browser.close()
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()

    def processes(self) -> list[psutil.Process]:
        """The browser's own process, without its helpers; none while it does not run."""
        found: list[psutil.Process] = []
        if not self._mark:
            return found
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                words = process.cmdline()
                if self._mark in words and not any(word.startswith("--type=") for word in words):
                    found.append(process)
        return found

    async def _new_page(self, width: int, height: int, scale: float) -> Page:
        async with self._lock:
            for _ in range(2):
                browser = self._browser
                if browser is None or not browser.is_connected():
                    browser = await self._start()
                try:
                    async with asyncio.timeout(_OPEN_S):
                        context = await browser.new_context(
                            viewport={"width": width, "height": height}, device_scale_factor=scale
                        )
                        return await context.new_page()
                except (PlaywrightError, TimeoutError):
                    # It hangs, or has just died: the pages of other branches are lost with it, and they try again.
                    await self.close()
        raise EnvironmentFault(f"the browser ({self._program}) opens no page, and was started twice")

    async def _start(self) -> Browser:
        await self.close()
        self._mark = f"--star-kv-rollout={uuid.uuid4().hex}"
        try:
            async with asyncio.timeout(_LAUNCH_S):
                self._browser = await self._playwright.chromium.launch(
                    executable_path=self._program, args=[*_FLAGS, self._mark]
                )
        except (PlaywrightError, TimeoutError) as error:
            first = (str(error).strip().splitlines() or ["it took too long"])[0]
            raise EnvironmentFault(f"the browser ({self._program}) does not start: {first}") from error
        return self._browser


@asynccontextmanager
async def running_chromium(program: Path) -> AsyncIterator[Chromium]:
    """A browser that is started when the first page is asked for, and ended with the block."""
    async with async_playwright() as playwright:
        chromium = Chromium(playwright, program)
        try:
            yield chromium
        finally:
            await chromium.close()
