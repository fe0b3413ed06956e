"""How far each token's vector lies from its screenshot's mean, key head by key head."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton

from star_kv_sglang.triton_ops.checks import (
    INT_DTYPES,
    check_contiguous,
    check_dtype,
    check_same_device,
    check_shape,
)
from star_kv_sglang.triton_ops.group_distances.kernel import block_sums_kernel, group_distances_kernel
from star_kv_sglang.triton_ops.launch import pow2, scratch

if TYPE_CHECKING:
    from collections.abc import Sequence

ROWS_PER_BLOCK = 64
BLOCKS_PER_STEP = 16
ROWS_PER_COUNT = 1024
KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, torch.float8_e4m3fn: 3}


def group_distances(
    pools: Sequence[torch.Tensor], slots: torch.Tensor, indptr: torch.Tensor, counts: torch.Tensor, *, max_rows: int
) -> torch.Tensor:
    """L2 distance of each token's vector to the mean of its frame, for every layer and group in two launches.

    | argument | shape | dtype | |
    |---|---|---|---|
    | pools | L of [num_slots, G, D] | float32, float16, bfloat16, float8_e4m3fn | equal strides, channels contiguous |
    | slots | [n] | int32, int64 | frame after frame |
    | indptr | [F+1] | int32 | rows of frame f are `indptr[f] : indptr[f + 1]`; all n rows lie in frames |
    | counts | [L, n] | bool | which rows the mean is made of; with none of a frame it is 0 |
    | max_rows | host int | | at least the largest frame |
    | result | [L, G, n] | float32 | |

    Sums are float32 in a fixed order, so that two runs agree bit for bit; 2e-6 relative to the reference.

    Raises:
        ValueError, TypeError: an argument has the wrong shape, dtype or device.
    """
    if not pools:
        raise ValueError("there is no pool to read: pass the values of at least one layer")
    first = pools[0]
    check_shape("pools[0]", first, (None, None, None))
    for index, pool in enumerate(pools):
        check_shape(f"pools[{index}]", pool, tuple(first.shape))
        check_dtype(f"pools[{index}]", pool, first.dtype)
        if pool.stride() != first.stride() or pool.stride(2) != 1:
            raise ValueError(f"pools[{index}] must have the strides of the others, and its channels be contiguous")
    check_dtype("pools[0]", first, *KINDS)
    check_shape("slots", slots, (None,))
    check_shape("indptr", indptr, (None,))
    check_shape("counts", counts, (len(pools), slots.shape[0]))
    check_dtype("slots", slots, *INT_DTYPES)
    check_dtype("indptr", indptr, torch.int32)
    check_dtype("counts", counts, torch.bool)
    check_same_device(first, slots=slots, indptr=indptr, counts=counts)
    check_contiguous(slots=slots, indptr=indptr, counts=counts)
    num_groups, head_dim = first.shape[1:]
    out = torch.empty(len(pools), num_groups, slots.shape[0], dtype=torch.float32, device=first.device)
    num_frames = indptr.shape[0] - 1
    if num_frames == 0 or slots.shape[0] == 0:
        return out
    num_blocks = max(1, triton.cdiv(max_rows, ROWS_PER_BLOCK))
    shape = (len(pools), num_groups, num_frames, num_blocks, head_dim)
    sums = scratch("group_distances", shape, torch.float32, first.device)
    addresses = torch.tensor([pool.data_ptr() for pool in pools], dtype=torch.int64)
    read = (addresses.to(first.device, non_blocking=True), slots, indptr, counts, sums)
    sizes = (first.stride(0), first.stride(1), slots.shape[0], num_blocks)
    kinds = {
        "NUM_GROUPS": num_groups,
        "HEAD_DIM": head_dim,
        "KIND": KINDS[first.dtype],
        "ALIGNED": all(pool.data_ptr() % 16 == 0 for pool in pools),
        "BLOCK_R": ROWS_PER_BLOCK,
        "BLOCK_D": pow2(head_dim, 16),
        "num_warps": 4,
    }
    grid = (num_groups * num_blocks, num_frames, len(pools))
    block_sums_kernel[grid](*read, *sizes, **kinds)
    group_distances_kernel[grid](
        *read, out, *sizes, **kinds, BLOCK_N=pow2(max_rows, 16, ROWS_PER_COUNT), BLOCK_B=BLOCKS_PER_STEP
    )
    return out
