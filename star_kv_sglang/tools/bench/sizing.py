"""How much KV cache a screenshot takes, and how many branches a GPU holds: arithmetic, nothing is run."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from star_kv_sglang.tools.resize import PixelBounds, Size, smart_resize

MIB, GIB = 2**20, 2**30
DTYPE_BYTES = 2
"""bfloat16, weights and KV cache."""
TEXT_PER_SCREENSHOT = 11
"""Tokens of a turn beside its screenshot: the action, and what the chat template writes."""


class SizingError(ValueError):
    """A model's configuration from which nothing can be computed."""


@dataclass(frozen=True)
class SizedModel:
    """What of a model decides about memory.

    Attributes:
        name: As a table shows it.
        num_layers, num_kv_heads, head_dim: Of its language model.
        num_params: All parameters, in billions; None where it is not known.
        token_pixels: Side of the square of pixels that one visual token stands for.
    """

    name: str
    num_layers: int
    num_kv_heads: int
    head_dim: int
    num_params: float | None
    token_pixels: int

    @property
    def token_bytes(self) -> int:
        """K and V of one token in all layers."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim * DTYPE_BYTES

    @property
    def weight_bytes(self) -> float:
        """Of all parameters; 0 where their number is not known."""
        return (self.num_params or 0) * 1e9 * DTYPE_BYTES

    def screenshot_tokens(self, size: Size) -> int:
        """Visual tokens of a screenshot of ``size`` pixels, width and height."""
        side = self.token_pixels
        bounds = PixelBounds(factor=side, min_pixels=4 * side * side, max_pixels=16384 * side * side)
        width, height = smart_resize(size, bounds)
        return (width // side) * (height // side)

    @classmethod
    def of_config(cls, path: Path) -> SizedModel:
        """A model from its ``config.json``, or the folder that holds it.

        Raises:
            SizingError: It cannot be read, or is no model with vision that this package prunes.
        """
        file = path / "config.json" if path.is_dir() else path
        try:
            config = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise SizingError(f"{file}: no configuration of a model can be read: {error}") from None
        if not isinstance(config, Mapping):
            raise SizingError(f"{file}: no configuration of a model can be read: it is no JSON object")
        text = config.get("text_config", config)
        vision = config.get("vision_config")
        if not isinstance(vision, Mapping):
            raise SizingError(f"{file}: no vision_config, so it sees no screenshots")
        try:
            return cls._of_parts(file.parent.name, text, vision)
        except (KeyError, TypeError) as error:
            raise SizingError(f"{file}: {error} is missing; give the config.json of a Qwen-VL model") from None

    @classmethod
    def _of_parts(cls, name: str, text: Mapping[str, Any], vision: Mapping[str, Any]) -> SizedModel:
        head_dim = text.get("head_dim") or text["hidden_size"] // text["num_attention_heads"]
        token_pixels = vision["patch_size"] * vision.get("spatial_merge_size", 2)
        return cls(name, text["num_hidden_layers"], text["num_key_value_heads"], head_dim, None, token_pixels)


MODELS = tuple(
    SizedModel(*row)
    for row in (
        ("Qwen2-VL-2B", 28, 2, 128, 2.2, 28),
        ("Qwen2.5-VL-3B", 36, 2, 128, 3.8, 28),
        ("Qwen2-VL-7B, Qwen2.5-VL-7B, UI-TARS-7B", 28, 4, 128, 8.3, 28),
        ("Qwen3-VL-4B", 36, 8, 128, 4.4, 32),
        ("Qwen3-VL-8B", 36, 8, 128, 8.8, 32),
        ("Qwen2.5-VL-32B", 64, 8, 128, 33.5, 28),
    )
)
"""Shapes from the models' published config.json."""
SCREENS: tuple[Size, ...] = ((1280, 720), (1920, 1080), (2560, 1440), (1080, 2400))


@dataclass(frozen=True)
class Fleet:
    """What is served, and on what.

    Attributes:
        gpu_bytes: Memory of the GPU.
        static_share: Share of it that weights and KV pool take together (``--mem-fraction-static``).
        num_screenshots: Screenshots in the history of a branch.
        num_shared: How many of them all branches have in common.
        budget: ``--kv-budget``.
    """

    gpu_bytes: float
    static_share: float
    num_screenshots: int
    num_shared: int
    budget: float


@dataclass(frozen=True)
class Sizing:
    """One row.

    Attributes:
        screenshot_tokens: Visual tokens of one screenshot.
        screenshot_bytes: Its K and V.
        pool_tokens: Tokens that the GPU has room for beside the weights.
        branches_full: Branches whose history the pool holds whole.
        branches_pruned: The same when a branch's own screenshots are down to the budget.
    """

    screenshot_tokens: int
    screenshot_bytes: int
    pool_tokens: int
    branches_full: int
    branches_pruned: int


def size(model: SizedModel, screen: Size, fleet: Fleet) -> Sizing:
    """What fits, at rest: a branch whose turn is computed holds its newest screenshot whole until the turn's prune."""
    tokens = model.screenshot_tokens(screen)
    pool = max(0, int((fleet.gpu_bytes * fleet.static_share - model.weight_bytes) // model.token_bytes))
    shared = fleet.num_shared * (tokens + TEXT_PER_SCREENSHOT)
    num_own = fleet.num_screenshots - fleet.num_shared
    full = num_own * (tokens + TEXT_PER_SCREENSHOT)
    pruned = num_own * TEXT_PER_SCREENSHOT + math.ceil(fleet.budget * num_own * tokens)
    room = max(0, pool - shared)
    return Sizing(tokens, tokens * model.token_bytes, pool, room // full, room // pruned)


def sizing_rows(models: Iterable[SizedModel], fleet: Fleet) -> tuple[list[str], list[list[str]]]:
    """Heads and rows of a table: each model at each of :data:`SCREENS`."""
    heads = [
        "model",
        "screen",
        "tokens",
        "MiB a screenshot",
        "pool, tokens",
        "branches, full",
        f"branches, {fleet.budget:g}",
    ]
    rows = []
    for model in models:
        for screen in SCREENS:
            one = size(model, screen, fleet)
            mib = f"{one.screenshot_bytes / MIB:,.0f}"
            counts = [f"{count:,}" for count in (one.pool_tokens, one.branches_full, one.branches_pruned)]
            rows.append([model.name, f"{screen[0]} x {screen[1]}", f"{one.screenshot_tokens:,}", mib, *counts])
    return heads, rows
