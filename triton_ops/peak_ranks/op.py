"""Ranks of a screenshot's tokens by how far they stand out, those beside a peak lowered."""

from __future__ import annotations

import torch
import triton

from star_kv_sglang.triton_ops.checks import (
    INT_DTYPES,
    check_contiguous,
    check_dtype,
    check_positive,
    check_same_device,
    check_shape,
)
from star_kv_sglang.triton_ops.launch import pow2, scratch
from star_kv_sglang.triton_ops.peak_ranks.kernel import counted_kernel, ranks_kernel

MAX_TILE = 1024
RANKED_TILE = 32
OTHERS_TILE = 256


def peak_ranks(
    distances: torch.Tensor,
    offsets: torch.Tensor,
    factors: torch.Tensor | None,
    *,
    rows: int,
    cols: int,
    beside_peak: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rank of each of V tokens by distance times factor, 0 for the lowest to 1 for the highest.

    A peak is a token none of whose up to eight live neighbours on the grid has a greater distance; a token that is none
    and has one among its neighbours counts `beside_peak` of that. Of equal ones the later is lower; NaN is the highest.
    A single token has rank 0.

    | argument | shape | dtype | |
    |---|---|---|---|
    | distances | [L, V] | float32 | tokens contiguous |
    | offsets | [L, V] | int16, int32, int64 | place of each on the grid, row by row; tokens contiguous |
    | | | | a token outside of the grid has no neighbours |
    | factors | [L, V] or None | float32 | contiguous; None: 1 |
    | rows, cols | host int | | of the grid |
    | beside_peak | host float | | 1: peaks do not matter |
    | result | two of [L, V] | float32 | ranks; 1 for a token beside a peak, 0 for any other |

    Ranks are exact for the products in float32.

    Raises:
        ValueError, TypeError: an argument has the wrong shape, dtype or device.
    """
    num_layers, num_tokens = distances.shape
    check_shape("offsets", offsets, (num_layers, num_tokens))
    check_dtype("distances", distances, torch.float32)
    check_dtype("offsets", offsets, torch.int16, *INT_DTYPES)
    check_same_device(distances, offsets=offsets)
    if factors is not None:
        check_shape("factors", factors, (num_layers, num_tokens))
        check_dtype("factors", factors, torch.float32)
        check_same_device(distances, factors=factors)
        check_contiguous(factors=factors)
    for name, tensor in (("distances", distances), ("offsets", offsets)):
        if tensor.stride(1) != 1:
            raise ValueError(f"{name} must be contiguous along its tokens, its strides are {list(tensor.stride())}")
    check_positive(rows=rows, cols=cols)
    device = distances.device
    out, beside = (torch.empty(num_layers, num_tokens, dtype=torch.float32, device=device) for _ in range(2))
    if not num_layers or not num_tokens:
        return out, beside
    counted = scratch("peak_ranks.counted", (num_layers, num_tokens), torch.float32, device)
    counted_kernel[(num_layers,)](
        distances,
        offsets,
        distances if factors is None else factors,
        scratch("peak_ranks.boards", (num_layers, 2, rows * cols), torch.float32, device),
        counted,
        beside,
        distances.stride(0),
        offsets.stride(0),
        num_tokens,
        rows,
        cols,
        beside_peak - 1.0,
        HAS_FACTORS=factors is not None,
        BLOCK_T=pow2(rows * cols, 16, MAX_TILE),
        num_warps=8,
        enable_fp_fusion=False,
    )
    ranks_kernel[(triton.cdiv(num_tokens, RANKED_TILE), num_layers)](
        counted, out, num_tokens, BLOCK_T=RANKED_TILE, BLOCK_J=OTHERS_TILE, num_warps=4
    )
    return out, beside
