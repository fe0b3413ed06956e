"""Scores of tokens, remembered in the side pool for pruning them again."""

from __future__ import annotations

import torch
import triton

from star_kv_sglang.triton_ops.checks import (
    INT_DTYPES,
    check_contiguous,
    check_dtype,
    check_same_device,
    check_shape,
)
from star_kv_sglang.triton_ops.keep_scores.kernel import keep_scores_kernel

TOKENS_PER_BLOCK = 512


def keep_scores(
    scores: torch.Tensor,
    again: torch.Tensor | None,
    slots: torch.Tensor,
    segment_ids: torch.Tensor | None,
    kept: torch.Tensor,
) -> torch.Tensor:
    """Write each token's score to its slot: `again` where that is a number, `scores` elsewhere, at most 65,504.

    | argument | shape | dtype | |
    |---|---|---|---|
    | scores | [U, N] | float32 | contiguous |
    | again | [U, N] or None | float32 | contiguous |
    | slots | [N] | int32, int64 | contiguous; one that stands twice gets either score |
    | segment_ids | [num_slots] or None | int32 | slots with another number than 0 keep what they have |
    | kept | [U, num_slots] | float16 | contiguous; written, returned |

    The result equals the reference exactly.

    Raises:
        ValueError, TypeError: an argument has the wrong shape, dtype or device.
    """
    num_units, num_tokens = scores.shape
    check_shape("slots", slots, (num_tokens,))
    check_shape("kept", kept, (num_units, None))
    tensors = {"slots": slots, "kept": kept}
    if again is not None:
        check_shape("again", again, (num_units, num_tokens))
        check_dtype("again", again, torch.float32)
        tensors["again"] = again
    if segment_ids is not None:
        check_shape("segment_ids", segment_ids, (kept.shape[1],))
        check_dtype("segment_ids", segment_ids, torch.int32)
        tensors["segment_ids"] = segment_ids
    check_dtype("scores", scores, torch.float32)
    check_dtype("slots", slots, *INT_DTYPES)
    check_dtype("kept", kept, torch.float16)
    check_same_device(scores, **tensors)
    check_contiguous(scores=scores, **tensors)
    if num_units and num_tokens:
        keep_scores_kernel[(triton.cdiv(num_tokens, TOKENS_PER_BLOCK), num_units)](
            scores,
            scores if again is None else again,
            slots,
            slots if segment_ids is None else segment_ids,
            kept,
            kept.shape[1],
            num_tokens,
            HAS_AGAIN=again is not None,
            HAS_IDS=segment_ids is not None,
            BLOCK_T=TOKENS_PER_BLOCK,
            num_warps=4,
        )
    return kept
