"""The worlds by name, as every program here takes them with ``--world``."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

from PIL import Image

from tinygui.pages.page import next_page, random_page
from tinygui.pages.paint import render_page
from tinygui.render import render
from tinygui.world import Shown, next_screen, random_screen


@dataclass(frozen=True, slots=True)
class World:
    """How screens come about and look.

    Attributes:
        name: as in `WORLDS`.
        first_screen: a fresh screen; follows from the random numbers handed in alone.
        next_screen: what the application shows after a screen of this world.
        render: the pixels of a screen of this world, mode "RGB".
    """

    name: str
    first_screen: Callable[[Random], Shown]
    next_screen: Callable[[Random, Any], Shown]
    render: Callable[[Any], Image.Image]

    def screens(self, rng: Random, count: int) -> list[Shown]:
        """``count`` screens, each the successor of the one before."""
        screens = [self.first_screen(rng)]
        while len(screens) < count:
            screens.append(self.next_screen(rng, screens[-1]))
        return screens

    def png(self, screen: Shown) -> bytes:
        """The screen as a PNG file."""
        buffer = io.BytesIO()
        self.render(screen).save(buffer, format="PNG")
        return buffer.getvalue()


PANELS = World("panels", random_screen, next_screen, render)
"""Plain rectangles on flat backgrounds: the world the first model was trained on."""
PAGES = World("pages", random_page, next_page, render_page)
"""Screens like web pages: gradients, shadows, textures, grain, and seven kinds of widgets."""

WORLDS = {world.name: world for world in (PANELS, PAGES)}
