"""Trajectories for training: drawn by worker processes without end, kept on the GPU until newer ones replace them.

Seeds of training, of validation and of every measurement in this folder name different streams of random numbers: the
text that seeds a generator starts with what it is for, so that no number makes two of them meet.
"""

from __future__ import annotations

import ctypes
import multiprocessing
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.sharedctypes import RawArray
from queue import Empty
from random import Random
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from tinygui.training.sizes import GRID, MERGE, NUM_PATCHES, PATCH, PIXELS
from tinygui.world import COLOURS, LETTERS, Shown
from tinygui.worlds import WORLDS

NUM_SCREENS = 6
MOST_WIDGETS = 12
FIELDS = ("colour", "letter", "x", "y", "left", "top", "width", "height")
"""Of a widget, as integers: indices, the centre in cells of 8 px, the box in pixels; all -1 where there is none."""

TOKEN = MERGE * PATCH
"""Pixels along the side of a visual token."""
WIDTH, HEIGHT = GRID[1] * TOKEN, GRID[0] * TOKEN
_SCREEN_BYTES = WIDTH * HEIGHT * 3
_SLOTS_A_WORKER = 6

Bytes = npt.NDArray[np.uint8]
Integers = npt.NDArray[np.int16]


def stream(purpose: str, world: str, seed: int) -> Random:
    """The random numbers of a seed; ``purpose`` is ``training`` or ``validation``."""
    return Random(f"tinygui {purpose} {world} {seed}")


def draw(purpose: str, world: str, seed: int) -> tuple[Bytes, Integers]:
    """The trajectory of a seed: pixels uint8 [6, 288, 448, 3] and widgets int16 [6, 12, 8]."""
    kind = WORLDS[world]
    screens = kind.screens(stream(purpose, world, seed), NUM_SCREENS)
    pixels = np.stack([np.asarray(kind.render(screen)) for screen in screens])
    return pixels, np.stack([widget_rows(screen) for screen in screens])


def widget_rows(screen: Shown) -> Integers:
    """A screen's widgets as `FIELDS`, int16 [12, 8]."""
    rows = np.full((MOST_WIDGETS, len(FIELDS)), -1, dtype=np.int16)
    for row, widget in zip(rows, screen.widgets, strict=False):
        x, y, width, height = widget.box
        centre = (x + width // 2) // 8, (y + height // 2) // 8
        row[:] = (COLOURS.index(widget.colour), LETTERS.index(widget.letter), *centre, x, y, width, height)
    return rows


def by_token(pixels: torch.Tensor) -> torch.Tensor:
    """Pixels uint8 [..., h * 32, w * 32, 3] as patches of visual tokens [..., h * w, 4, 768], channel by channel."""
    *batch, height, width, _ = pixels.shape
    shape = (-1, height // TOKEN, MERGE, PATCH, width // TOKEN, MERGE, PATCH, 3)
    tokens = pixels.reshape(shape).permute(0, 1, 4, 2, 5, 7, 3, 6)
    return tokens.reshape(*batch, -1, NUM_PATCHES, PIXELS)


@dataclass(slots=True)
class Trajectories:
    """Trajectories on the device.

    Attributes:
        pixels: uint8 [N, 6, 288, 448, 3].
        widgets: int64 [N, 6, 12, 8].
        num_filled: How many of the N are there.
    """

    pixels: torch.Tensor
    widgets: torch.Tensor
    num_filled: int = 0

    @classmethod
    def empty(cls, count: int, device: torch.device) -> Trajectories:
        """Room for ``count``."""
        pixels = torch.empty(count, NUM_SCREENS, HEIGHT, WIDTH, 3, dtype=torch.uint8, device=device)
        shape = (count, NUM_SCREENS, MOST_WIDGETS, len(FIELDS))
        return cls(pixels, torch.full(shape, -1, dtype=torch.int64, device=device))

    def part(self, start: int, stop: int) -> Trajectories:
        """Some of the rows, in the same memory."""
        return Trajectories(self.pixels[start:stop], self.widgets[start:stop])

    def put(self, index: int, pixels: torch.Tensor, widgets: torch.Tensor) -> None:
        """Replace one; what is handed in may be changed afterwards."""
        self.pixels[index] = pixels.to(self.pixels.device)
        self.widgets[index] = widgets.to(self.pixels.device, torch.int64)
        self.num_filled = max(self.num_filled, index + 1)


def held_out(world: str, count: int, device: torch.device) -> Trajectories:
    """The first ``count`` seeds of validation."""
    made = Trajectories.empty(count, device)
    for seed in range(count):
        pixels, widgets = draw("validation", world, seed)
        made.put(seed, torch.from_numpy(pixels), torch.from_numpy(widgets))
    return made


class Pool:
    """Worker processes and the trajectories they have drawn last.

    Create it before anything uses the GPU: workers are forked.

    Args:
        worlds: Which to draw from, turn by turn.
        workers: Processes.
        first_seed: Seeds follow from here.
    """

    def __init__(self, worlds: Sequence[str], workers: int, first_seed: int) -> None:
        context = multiprocessing.get_context("fork")
        self._free: Any = context.Queue()
        self._full: Any = context.Queue()
        slots = workers * _SLOTS_A_WORKER
        pixels: Any = RawArray(ctypes.c_uint8, slots * NUM_SCREENS * _SCREEN_BYTES)
        widgets: Any = RawArray(ctypes.c_int16, slots * NUM_SCREENS * MOST_WIDGETS * len(FIELDS))
        self._pixels = np.frombuffer(pixels, dtype=np.uint8).reshape(slots, NUM_SCREENS, HEIGHT, WIDTH, 3)
        shape = (slots, NUM_SCREENS, MOST_WIDGETS, len(FIELDS))
        self._widgets = np.frombuffer(widgets, dtype=np.int16).reshape(shape)
        self._side: torch.cuda.Stream | None = None
        self.drawn = 0
        self._processes = [
            context.Process(target=self._work, args=(tuple(worlds), first_seed + number, workers), daemon=True)
            for number in range(workers)
        ]
        for process in self._processes:
            process.start()
        self._num_slots = slots

    def start(self) -> None:
        """Have the workers draw. Make all pools first: this starts a thread, and none may be there when one forks."""
        for slot in range(self._num_slots):
            self._free.put(slot)

    def _work(self, worlds: Sequence[str], seed: int, step: int) -> None:
        turn = seed
        while (slot := self._free.get()) is not None:
            self._pixels[slot], self._widgets[slot] = draw("training", worlds[turn % len(worlds)], seed)
            self._full.put(slot)
            seed, turn = seed + step, turn + 1

    def fill(self, trajectories: Trajectories, count: int, timeout_s: float) -> None:
        """Wait until there are ``count`` trajectories.

        Raises:
            RuntimeError: No trajectory came within the time.
        """
        while trajectories.num_filled < count:
            try:
                self._take(trajectories, self._full.get(timeout=timeout_s))
            except Empty as error:
                raise RuntimeError(f"the workers drew no screens within {timeout_s:.0f} s; see their errors") from error

    def renew(self, trajectories: Trajectories, most: int) -> None:
        """Replace the oldest by up to ``most`` that are ready."""
        for _ in range(most):
            try:
                slot = self._full.get_nowait()
            except Empty:
                return
            self._take(trajectories, slot)

    def _take(self, trajectories: Trajectories, slot: int) -> None:
        pixels, widgets = torch.from_numpy(self._pixels[slot]), torch.from_numpy(self._widgets[slot])
        if trajectories.pixels.is_cuda:
            # A copy waits for its stream: on the stream of the training step it would wait for the step.
            side = self._side = self._side or torch.cuda.Stream()
            with torch.cuda.stream(side):
                pixels, widgets = pixels.cuda(), widgets.cuda()
            current = torch.cuda.current_stream()
            current.wait_stream(side)
            pixels.record_stream(current)
            widgets.record_stream(current)
        trajectories.put(self.drawn % len(trajectories.widgets), pixels, widgets)
        self.drawn += 1
        self._free.put(slot)

    def close(self) -> None:
        """End the workers."""
        self._free.cancel_join_thread()
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            process.join()
