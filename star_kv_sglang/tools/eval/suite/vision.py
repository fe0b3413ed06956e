"""Screenshots as the model's vision tower sees them, computed once and read by all engines.

A prompt of six screenshots costs an engine far more in image processing than in everything that a policy changes, and
every policy, budget and question has the same screenshots. So the tower runs once, in transformers, and the engines are
given its output. A file for each trajectory: ``{id}.pt``.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from star_kv_sglang.tools.rollout.trajectory import Trajectory


@dataclass(frozen=True, slots=True)
class SeenScreen:
    """One screenshot behind the tower.

    Attributes:
        embedding: [num_tokens, C * (1 + num_deepstack)], what the tower hands to the language model.
        grid: image_grid_thw of the processor, int64 [1, 3].
    """

    embedding: torch.Tensor
    grid: torch.Tensor


class VisionTower:
    """The vision tower of a Qwen-VL checkpoint, in float32.

    Args:
        model: the checkpoint's folder.
        device: where it runs.
    """

    def __init__(self, model: Path, device: str) -> None:
        from transformers import AutoImageProcessor, AutoModelForImageTextToText

        self._images: Any = AutoImageProcessor.from_pretrained(model)
        self._model: Any = AutoModelForImageTextToText.from_pretrained(model, dtype=torch.float32).to(device).eval()
        self._device = device

    def pixels(self, trajectory: Trajectory) -> dict[str, torch.Tensor]:
        """The processor's part, on the host."""
        pictures = [Image.open(io.BytesIO(turn.image_png)).convert("RGB") for turn in trajectory.turns]
        made: dict[str, torch.Tensor] = self._images(images=pictures, return_tensors="pt")
        return made

    @torch.inference_mode()
    def see(self, pixels: dict[str, torch.Tensor]) -> list[SeenScreen]:
        """The tower's part."""
        grids = pixels["image_grid_thw"]
        features = self._model.model.get_image_features(pixels["pixel_values"].to(self._device), grids.to(self._device))
        # One tensor for each screenshot, from the tower's last layer and from those it taps.
        parts = [features.pooler_output, *(getattr(features, "deepstack_features", None) or ())]
        joined = torch.cat([torch.cat(list(part)) for part in parts], dim=1).cpu()
        sizes = [len(part) for part in features.pooler_output]
        return [
            SeenScreen(embedding.clone(), grid[None].clone())
            for embedding, grid in zip(joined.split(sizes), grids, strict=True)
        ]


def see_all(
    model: Path, trajectories: Sequence[Trajectory], folder: Path, *, dtype: torch.dtype, device: str
) -> Iterator[int]:
    """Writes the files that are missing; yields the number of trajectories that are there."""
    folder.mkdir(parents=True, exist_ok=True)
    missing = [one for one in trajectories if not file_of(folder, one.id).exists()]
    done = len(trajectories) - len(missing)
    yield done
    if not missing:
        return
    tower = VisionTower(model, device)
    threads = max(1, (os.cpu_count() or 2) // 2)
    with ThreadPoolExecutor(threads) as pool:
        for trajectory, pixels in zip(missing, pool.map(tower.pixels, missing), strict=True):
            screens = tower.see(pixels)
            _write(file_of(folder, trajectory.id), [(one.embedding.to(dtype), one.grid) for one in screens])
            done += 1
            yield done


def file_of(folder: Path, trajectory: int) -> Path:
    """The file of a trajectory's screenshots."""
    return folder / f"{trajectory}.pt"


def load_screens(folder: Path, trajectory: int) -> list[SeenScreen]:
    """A trajectory's screenshots."""
    rows = torch.load(file_of(folder, trajectory), weights_only=True)
    return [SeenScreen(embedding, grid) for embedding, grid in rows]


def _write(path: Path, rows: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
    """At once or not at all: engines wait for the file while it is made."""
    unfinished = path.with_suffix(".tmp")
    torch.save(rows, unfinished)
    unfinished.rename(path)
