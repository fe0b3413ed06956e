"""What the observation window attends to, per key head."""

from __future__ import annotations

import math

import torch
import triton

from star_kv_sglang.triton_ops.checks import (
    FLOAT_DTYPES,
    INT_DTYPES,
    check_contiguous,
    check_dtype,
    check_positive,
    check_same_device,
    check_shape,
)
from star_kv_sglang.triton_ops.launch import INTERPRETED, pow2, scratch, zeroed_scratch
from star_kv_sglang.triton_ops.window_scores.kernel import window_pool_kernel, window_softmax_kernel

MAX_ROWS = 64
SOFTMAX_TILE = 64
POOL_TILE = 128
MIN_TILES_PER_SPLIT = 2
MAX_SPLITS = 128


def window_scores(
    query: torch.Tensor,
    query_indptr: torch.Tensor,
    key_cache: torch.Tensor,
    kv_indices: torch.Tensor,
    kv_indptr: torch.Tensor,
    *,
    sm_scale: float,
    pool_width: int,
    max_window: int,
    max_num_live: int,
    out: torch.Tensor,
    log_sums: torch.Tensor | None = None,
) -> torch.Tensor:
    """Score every past token of one layer by the attention that the window pays to it.

    For request r with w window queries and T live tokens: softmax in float32 of `query . key * sm_scale` over the
    live keys, where window query i sees keys up to T - w + i; summed over the window; average pooled over the past
    tokens with `pool_width` (zero padding that counts); mean over the query heads of each group. Window tokens get 0,
    and so does every token of a request with w = 0. STaR-KV (arXiv 2606.01790), window attention and pooling.

    | argument | shape | dtype | |
    |---|---|---|---|
    | query | [sum w, H, D] | float32, float16, bfloat16 | rotary applied; last dimension contiguous |
    | query_indptr | [R+1] | int32 | window of request r |
    | key_cache | [num_slots, G, D] | as query, or float8_e4m3fn | rotary applied; last dimension contiguous |
    | kv_indices | [N] | int32, int64 | slot of each live token |
    | kv_indptr | [R+1] | int32 | live tokens of request r |
    | max_window, max_num_live | host int | | at least the largest w and T |
    | out | [G, N] | float32 | last dimension contiguous; returned |
    | log_sums | [sum w, H] or None | float32 | contiguous; log2 of each query's sum of exponentials |

    With `log_sums`, which an attention kernel can return for the same queries, the keys are read once instead of twice.

    Accumulation is float32. Against the reference on the same inputs: 2e-6 relative in float32, 8e-3 in bfloat16.

    Example:
        >>> out = torch.empty(4, 13_500, device="cuda")
        >>> window_scores(q, q_indptr, k_cache, kv_indices, kv_indptr, sm_scale=128**-0.5, pool_width=5,
        ...               max_window=8, max_num_live=13_500, out=out)

    Raises:
        ValueError, TypeError: an argument has the wrong shape, dtype or device.
    """
    _check(query, query_indptr, key_cache, kv_indices, kv_indptr, pool_width, max_window, max_num_live, out, log_sums)
    num_groups, head_dim = key_cache.shape[1:]
    heads_per_group = query.shape[1] // num_groups
    strides = (query.stride(0), query.stride(1), key_cache.stride(0), key_cache.stride(1))
    scale_log2 = sm_scale * math.log2(math.e)
    constants = {
        "HEADS_PER_GROUP": heads_per_group,
        "NUM_GROUPS": num_groups,
        "HEAD_DIM": head_dim,
        "BLOCK_M": pow2(max_window * heads_per_group, 16, MAX_ROWS),
        "BLOCK_D": pow2(head_dim, 16),
        "UPCAST": INTERPRETED,
    }
    inputs = (query, query_indptr, key_cache, kv_indices, kv_indptr)
    if log_sums is None:
        log_sums = _log_sums(inputs, strides, scale_log2, max_window * heads_per_group, max_num_live, constants)
    tiles = triton.cdiv(max_num_live, POOL_TILE - 2 * (pool_width // 2))
    window_pool_kernel[(num_groups, tiles, kv_indptr.shape[0] - 1)](
        *inputs,
        log_sums,
        out,
        *strides,
        out.stride(0),
        scale_log2,
        POOL_WIDTH=pool_width,
        BLOCK_T=POOL_TILE,
        num_warps=4,
        num_stages=1,
        **constants,
    )
    return out


def _log_sums(
    inputs: tuple[torch.Tensor, ...],
    strides: tuple[int, ...],
    scale_log2: float,
    max_rows: int,
    max_num_live: int,
    constants: dict[str, int],
) -> torch.Tensor:
    """log2 of every window query's sum of exponentials [sum w * H]: the first pass over the keys."""
    query, num_requests = inputs[0], inputs[4].shape[0] - 1
    num_groups = constants["NUM_GROUPS"]
    num_rows = query.shape[0] * query.shape[1]
    log_sums = scratch("window_scores.log_sums", (max(num_rows, 1),), torch.float32, query.device)
    if num_rows == 0:
        return log_sums
    row_blocks = triton.cdiv(max_rows, constants["BLOCK_M"])
    num_tiles = triton.cdiv(max_num_live, SOFTMAX_TILE)
    keys_per_split = max(MIN_TILES_PER_SPLIT, triton.cdiv(num_tiles, MAX_SPLITS)) * SOFTMAX_TILE
    splits = triton.cdiv(max_num_live, keys_per_split)
    partial = scratch("window_scores.partial", (num_rows, splits), torch.float32, query.device)
    arrivals = zeroed_scratch("window_scores.arrivals", num_requests * num_groups * row_blocks, query.device)
    window_softmax_kernel[(num_groups * row_blocks, splits, num_requests)](
        *inputs,
        partial,
        arrivals,
        log_sums,
        *strides,
        scale_log2,
        keys_per_split,
        splits,
        row_blocks,
        BLOCK_T=SOFTMAX_TILE,
        BLOCK_SPLITS=pow2(splits),
        num_warps=4,
        num_stages=2,
        **constants,
    )
    return log_sums


def _check(
    query: torch.Tensor,
    query_indptr: torch.Tensor,
    key_cache: torch.Tensor,
    kv_indices: torch.Tensor,
    kv_indptr: torch.Tensor,
    pool_width: int,
    max_window: int,
    max_num_live: int,
    out: torch.Tensor,
    log_sums: torch.Tensor | None,
) -> None:
    check_shape("query", query, (None, None, None))
    check_shape("key_cache", key_cache, (None, None, query.shape[2]))
    check_shape("kv_indices", kv_indices, (None,))
    check_shape("query_indptr", query_indptr, (kv_indptr.shape[0],))
    check_shape("out", out, (key_cache.shape[1], kv_indices.shape[0]))
    check_dtype("query", query, *FLOAT_DTYPES)
    check_dtype("key_cache", key_cache, query.dtype, torch.float8_e4m3fn)
    check_dtype("kv_indices", kv_indices, *INT_DTYPES)
    check_dtype("query_indptr", query_indptr, torch.int32)
    check_dtype("kv_indptr", kv_indptr, torch.int32)
    check_dtype("out", out, torch.float32)
    check_same_device(
        query, query_indptr=query_indptr, key_cache=key_cache, kv_indices=kv_indices, kv_indptr=kv_indptr, out=out
    )
    if log_sums is not None:
        check_shape("log_sums", log_sums, tuple(query.shape[:2]))
        check_dtype("log_sums", log_sums, torch.float32)
        check_same_device(query, log_sums=log_sums)
        check_contiguous(log_sums=log_sums)
    check_positive(max_window=max_window, max_num_live=max_num_live)
    if query.shape[1] % key_cache.shape[1]:
        raise ValueError(f"{query.shape[1]} query heads are not a multiple of {key_cache.shape[1]} key heads")
    if query.stride(2) != 1 or key_cache.stride(2) != 1 or out.stride(1) != 1:
        raise ValueError("the last dimension of query, key_cache and out must be contiguous")
    if pool_width % 2 == 0 or not 1 <= pool_width < POOL_TILE // 2:
        raise ValueError(f"pool_width is {pool_width}, expected an odd number below {POOL_TILE // 2}")
