"""One file for each pruned segment: which tokens of the screenshot every layer kept."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from star_kv_sglang.cache.segments import Frame, Segment
from star_kv_sglang.cache.side_pools import SidePools

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import Req


class PruneTrace:
    """Writes ``{counter}_{rid}_f{frame}.npz`` with ``kept`` int32 [num_layers, n] (raster offsets) and ``meta`` (JSON).

    Args:
        folder: Created when it does not exist.
    """

    def __init__(self, folder: str) -> None:
        self._folder = Path(folder)
        self._folder.mkdir(parents=True, exist_ok=True)
        self._count = 0

    def write(
        self,
        req: Req,
        frames: Sequence[Frame],
        segment: Segment,
        side: SidePools,
        slots: torch.Tensor,
        budget: float,
        after: int,
    ) -> None:
        """Record one prune.

        Args:
            req: The request whose prompt was pruned.
            frames: Its screenshots.
            segment: The segment as it was before.
            side: Side pools after the move.
            slots: Slots that are left of the segment's core.
            budget: The policy's budget.
            after: Queries at this position and later no longer see what went.
        """
        frame = segment.frame
        index = frames.index(frame)
        meta = {
            "rid": req.rid,
            "frame_index": index,
            "num_frames": len(frames),
            "frame_start": frame.start,
            "grid": [frame.rows, frame.cols],
            "segment": [segment.core_start - frame.start, segment.core_end - frame.start],
            "image_hash": frame.image_hash,
            "budget": budget,
            "num_apart": segment.num_apart,
            "step": self._count,
            "prompt_len": len(req.origin_input_ids),
            "after": after,
        }
        kept = side.frame_offsets[:, slots].to(torch.int32).cpu().numpy()
        name = f"{self._count:06d}_{req.rid[:32]}_f{index}.npz"
        np.savez(self._folder / name, kept=kept, meta=np.frombuffer(json.dumps(meta).encode(), dtype=np.uint8))
        self._count += 1
