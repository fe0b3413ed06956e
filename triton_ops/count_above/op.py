"""How many scores of each segment lie above thresholds: what a search for one common threshold asks again and again."""

from __future__ import annotations

import torch

from star_kv_sglang.triton_ops.checks import (
    check_contiguous,
    check_dtype,
    check_same_device,
    check_shape,
)
from star_kv_sglang.triton_ops.count_above.kernel import count_above_kernel
from star_kv_sglang.triton_ops.launch import pow2

KEYS_PER_BLOCK = 256
MAX_THRESHOLDS = 16


def count_above(keys: torch.Tensor, indptr: torch.Tensor, thresholds: torch.Tensor) -> torch.Tensor:
    """Count the keys above each threshold, over all units of each segment.

    | argument | shape | dtype | |
    |---|---|---|---|
    | keys | [U, n] | int16 | scores as integers of the same order, segment after segment; last dimension contiguous |
    | indptr | [S+1] | int32 | columns of segment s are `indptr[s] : indptr[s + 1]` |
    | thresholds | [T] | int32 | ascending; at most 16 |
    | result | [T, S] | int32 | contiguous |

    The result equals the reference exactly.

    Example:
        >>> count_above(scores.to(torch.float16).view(torch.int16), indptr, thresholds)  # no negative scores

    Raises:
        ValueError, TypeError: an argument has the wrong shape, dtype or device.
    """
    check_shape("keys", keys, (None, None))
    check_shape("indptr", indptr, (None,))
    check_shape("thresholds", thresholds, (None,))
    check_dtype("keys", keys, torch.int16)
    check_dtype("indptr", indptr, torch.int32)
    check_dtype("thresholds", thresholds, torch.int32)
    check_contiguous(indptr=indptr, thresholds=thresholds)
    check_same_device(keys, indptr=indptr, thresholds=thresholds)
    if keys.stride(1) != 1:
        raise ValueError("the last dimension of keys must be contiguous")
    num_thresholds, num_segments = len(thresholds), len(indptr) - 1
    if num_thresholds > MAX_THRESHOLDS:
        raise ValueError(f"{num_thresholds} thresholds at once; ask for {MAX_THRESHOLDS} at most")
    counts = torch.empty(num_thresholds, num_segments, dtype=torch.int32, device=keys.device)
    if counts.numel():
        count_above_kernel[(num_segments,)](
            keys,
            indptr,
            thresholds,
            counts,
            keys.stride(0),
            keys.shape[0],
            num_segments,
            num_thresholds,
            BLOCK_K=KEYS_PER_BLOCK,
            BLOCK_T=pow2(num_thresholds),
            num_warps=4,
        )
    return counts
