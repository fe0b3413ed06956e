"""How much larger a token's norm is than the usual one of its screenshot."""

from __future__ import annotations

import torch

from star_kv_sglang.triton_ops.checks import check_contiguous, check_dtype, check_same_device, check_shape
from star_kv_sglang.triton_ops.launch import pow2
from star_kv_sglang.triton_ops.norm_excess.kernel import norm_excess_kernel

MAX_TILE = 16384


def norm_excess(norms: torch.Tensor, indptr: torch.Tensor, excess: torch.Tensor, *, max_rows: int) -> torch.Tensor:
    """Raise `excess` to each norm over the median of its frame, where that is larger.

    The median is the lower one, an element of the frame, and exact. A frame whose median is 0 has no excess.

    | argument | shape | dtype | |
    |---|---|---|---|
    | norms | [n] | float32 | contiguous, at least 0 |
    | indptr | [F+1] | int32 | rows of frame f are `indptr[f] : indptr[f + 1]` |
    | excess | [n] | float32 | contiguous; the largest ratio so far; written, returned |
    | max_rows | host int | | at least the largest frame |

    Raises:
        ValueError, TypeError: an argument has the wrong shape, dtype or device.
    """
    check_shape("norms", norms, (None,))
    check_shape("indptr", indptr, (None,))
    check_shape("excess", excess, tuple(norms.shape))
    check_dtype("norms", norms, torch.float32)
    check_dtype("indptr", indptr, torch.int32)
    check_dtype("excess", excess, torch.float32)
    check_same_device(norms, indptr=indptr, excess=excess)
    check_contiguous(norms=norms, indptr=indptr, excess=excess)
    num_frames = indptr.shape[0] - 1
    if num_frames > 0 and norms.shape[0] > 0:
        tile = pow2(max_rows, 16, MAX_TILE)
        norm_excess_kernel[(num_frames,)](
            norms, indptr, excess, BLOCK_R=tile, ONE_TILE=max_rows <= tile, num_warps=8 if tile < 8192 else 16
        )
    return excess
