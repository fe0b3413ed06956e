"""Quotas that grow by the tokens that stay beside the budget."""

from __future__ import annotations

import torch

from star_kv_sglang.triton_ops.apart_quotas.kernel import apart_quotas_kernel
from star_kv_sglang.triton_ops.checks import (
    check_contiguous,
    check_dtype,
    check_positive,
    check_same_device,
    check_shape,
)
from star_kv_sglang.triton_ops.launch import pow2

MAX_TILE = 1024


def apart_quotas(
    quotas: torch.Tensor,
    apart: torch.Tensor,
    segments: torch.Tensor,
    known: torch.Tensor,
    *,
    most: int,
    page_size: int,
    max_segment: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Add to each segment's quota the tokens apart that nobody has counted yet.

    At most `most` of a segment count, in whole pages; no quota exceeds its segment. What is known of a segment is in
    its quota already.

    | argument | shape | dtype | |
    |---|---|---|---|
    | quotas | [S] | int32 | contiguous |
    | apart | [N] | bool | which tokens; contiguous |
    | segments | [S, 2] | int32 | packed ranges |
    | known | [S] | int32 | tokens apart of a segment that are known; below 0: nobody knows |
    | max_segment | host int | | at least the longest segment |
    | result | two of [S] | int32 | quotas, tokens apart of each segment |

    The result equals the reference exactly.

    Raises:
        ValueError, TypeError: an argument has the wrong shape, dtype or device.
    """
    check_shape("quotas", quotas, (None,))
    check_shape("apart", apart, (None,))
    check_shape("segments", segments, (quotas.shape[0], 2))
    check_shape("known", known, tuple(quotas.shape))
    for name, tensor in (("quotas", quotas), ("segments", segments), ("known", known)):
        check_dtype(name, tensor, torch.int32)
    check_dtype("apart", apart, torch.bool)
    check_same_device(quotas, apart=apart, segments=segments, known=known)
    check_contiguous(quotas=quotas, apart=apart, segments=segments, known=known)
    check_positive(most=most, page_size=page_size)
    grown, told = torch.empty_like(quotas), torch.empty_like(quotas)
    if quotas.shape[0]:
        apart_quotas_kernel[(quotas.shape[0],)](
            quotas,
            apart,
            segments,
            known,
            grown,
            told,
            most,
            page_size,
            BLOCK_T=pow2(max_segment, 16, MAX_TILE),
            num_warps=4,
        )
    return grown, told
