"""Does an agent's actions with a page's mouse and keyboard."""

from __future__ import annotations

from typing import Final, Literal

from playwright.async_api import Page

from star_kv_sglang.tools.actions import Action, ActionKind, Point
from star_kv_sglang.tools.rollout.environment import ActionRefusedError

_WHEEL: Final = {"up": (0, -100), "down": (0, 100), "left": (-100, 0), "right": (100, 0)}
_MODIFIERS: Final = {"ctrl": "Control", "shift": "Shift", "alt": "Alt", "command": "Meta", "win": "Meta"}
_KEYS: Final = {
    "enter": "Enter",
    "esc": "Escape",
    "tab": "Tab",
    "space": " ",
    "backspace": "Backspace",
    "delete": "Delete",
    "insert": "Insert",
    "home": "Home",
    "end": "End",
    "pageup": "PageUp",
    "pagedown": "PageDown",
    "up": "ArrowUp",
    "down": "ArrowDown",
    "left": "ArrowLeft",
    "right": "ArrowRight",
    **{f"f{number}": f"F{number}" for number in range(1, 13)},
}
_CLICKS: Final[dict[ActionKind, tuple[Literal["left", "right", "middle"], int]]] = {
    ActionKind.CLICK: ("left", 1),
    ActionKind.DOUBLE_CLICK: ("left", 2),
    ActionKind.TRIPLE_CLICK: ("left", 3),
    ActionKind.RIGHT_CLICK: ("right", 1),
    ActionKind.MIDDLE_CLICK: ("middle", 1),
}
_LONG_PRESS_MS: Final = 800
_WAIT_MS: Final = 1000
_WHEEL_REAL_MS: Final = 100
"""A wheel's event goes through the compositor, whose time is the machine's and not the page's."""


class Hands:
    """A mouse and a keyboard on one page.

    Args:
        page: With a clock that stands still (:mod:`star_kv_sglang.tools.browser.miniwob`).
        width, height: Of its viewport in CSS pixels.
    """

    def __init__(self, page: Page, width: int, height: int) -> None:
        self._page = page
        self._width = width
        self._height = height
        self._pointer: tuple[float, float] = (width / 2, height / 2)

    async def do(self, action: Action) -> None:
        """Do one action.

        Raises:
            ActionRefusedError: It cannot be done in a page, or lacks what it needs.
        """
        mouse = self._page.mouse
        match action.kind:
            case kind if kind in _CLICKS:
                button, count = _CLICKS[kind]
                await mouse.click(*self._at(action), button=button, click_count=count)
            case ActionKind.MOVE:
                await mouse.move(*self._at(action))
            case ActionKind.LONG_PRESS:
                await mouse.move(*self._at(action))
                await mouse.down()
                await self._page.clock.run_for(_LONG_PRESS_MS)
                await mouse.up()
            case ActionKind.DRAG:
                await self._drag(action)
            case ActionKind.SCROLL:
                await self._scroll(action)
            case ActionKind.WRITE:
                await self._page.keyboard.type(action.text or "")
            case ActionKind.KEYS:
                for key in key_names(action.keys):
                    await self._page.keyboard.press(key)
            case ActionKind.WAIT:
                await self._page.clock.run_for(_WAIT_MS)
            case other:
                raise ActionRefusedError(f"a page in a browser has no {other.value}")

    async def _drag(self, action: Action) -> None:
        if action.end is None:
            raise ActionRefusedError("drag needs a point where it ends")
        mouse = self._page.mouse
        if action.point is not None:
            await mouse.move(*self._at(action))
        end = self._pixel(action.end)
        await mouse.down()
        await mouse.move(*end, steps=5)
        await mouse.up()
        self._pointer = end

    async def _scroll(self, action: Action) -> None:
        direction = action.direction or "down"
        if direction not in _WHEEL:
            raise ActionRefusedError(f"scroll goes up, down, left or right, not {direction!r}")
        if action.point is not None:
            self._pointer = self._pixel(action.point)
        await self._page.mouse.move(*self._pointer)
        await self._page.mouse.wheel(*_WHEEL[direction])
        await self._page.wait_for_timeout(_WHEEL_REAL_MS)

    def _at(self, action: Action) -> tuple[float, float]:
        if action.point is None:
            raise ActionRefusedError(f"{action.kind.value} needs a point")
        self._pointer = self._pixel(action.point)
        return self._pointer

    def _pixel(self, point: Point) -> tuple[float, float]:
        # The right and the lower edge belong to the last pixel.
        return min(point[0] * self._width, self._width - 1), min(point[1] * self._height, self._height - 1)


def key_names(keys: tuple[str, ...]) -> list[str]:
    """Playwright's names of what is pressed one after another: ``ctrl``, ``a``, ``enter`` is ``Control+a``, ``Enter``.

    Raises:
        ActionRefusedError: There is no such key, or none but modifiers.
    """
    pressed: list[str] = []
    held: list[str] = []
    for key in keys:
        if key in _MODIFIERS:
            held.append(_MODIFIERS[key])
            continue
        # The keyboard is an American one; what it cannot press can be written.
        if key not in _KEYS and not (len(key) == 1 and key.isascii() and key.isprintable()):
            raise ActionRefusedError(f"there is no key {key!r}")
        pressed.append("+".join([*held, _KEYS.get(key, key)]))
        held = []
    if held or not pressed:
        raise ActionRefusedError(f"keys {'+'.join(keys) or 'of none'} press nothing")
    return pressed
