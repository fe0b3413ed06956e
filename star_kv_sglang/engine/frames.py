"""Screenshots of a request, as SGLang's multimodal inputs describe them."""

from __future__ import annotations

import logging
from array import array
from typing import TYPE_CHECKING, Any

import torch

from star_kv_sglang.cache.segments import Frame

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import Req

logger = logging.getLogger(__name__)

MOST_TOKENS = torch.iinfo(torch.int16).max
"""Of a screenshot that is pruned: the side pools tell a token's place in it with 16 bits, of which one is the sign."""


def frames_of_request(req: Req, merge_size: int) -> tuple[Frame, ...]:
    """The images of a request in order of position; videos and audio count as text and are never pruned.

    An image counts where the prompt's ids are the ones that SGLang writes for it: a session that went back keeps the
    items of what it left.

    Args:
        req: SGLang's request with padded input ids.
        merge_size: Patches that the vision tower merges into one token, along each side.
    """
    if req.multimodal_inputs is None:
        return ()
    frames = []
    for item in req.multimodal_inputs.mm_items:
        if not item.is_image() or item.offsets is None:
            continue
        grids = item.model_specific_data["image_grid_thw"].reshape(-1, 3).tolist()
        for (first, last), (_, patch_rows, patch_cols) in zip(item.offsets, grids, strict=True):
            if not _shows(req.origin_input_ids, item, first, last + 1):
                continue
            frame = Frame(int(first), int(patch_rows) // merge_size, int(patch_cols) // merge_size, int(item.hash))
            if frame.end != last + 1:
                logger.error(
                    "request %s: image at %d..%d does not fill its grid of %dx%d tokens; it is kept whole",
                    req.rid, first, last, frame.rows, frame.cols,
                )  # fmt: skip
            elif frame.end - frame.start > MOST_TOKENS:
                logger.warning(
                    "request %s: image at %d..%d has more than %d tokens; it is kept whole",
                    req.rid, first, last, MOST_TOKENS,
                )  # fmt: skip
            else:
                frames.append(frame)
    return tuple(sorted(frames, key=lambda frame: frame.start))


def _shows(ids: array[int], item: Any, start: int, end: int) -> bool:
    """Whether the ids of these positions are an image's: SGLang writes a sequence that stands for its content."""
    return ids[start:end] == array("q", item.padding_sequence(end - start))
