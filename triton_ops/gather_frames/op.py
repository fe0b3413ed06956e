"""What the side pools say of a batch's live tokens, sinks told apart."""

from __future__ import annotations

import torch
import triton

from star_kv_sglang.triton_ops.checks import (
    FLOAT_DTYPES,
    INT_DTYPES,
    check_contiguous,
    check_dtype,
    check_same_device,
    check_shape,
)
from star_kv_sglang.triton_ops.gather_frames.kernel import gather_frames_kernel

TOKENS_PER_BLOCK = 512


def gather_frames(
    norms: torch.Tensor, offsets: torch.Tensor, slots: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Norms and offsets of the tokens in these slots, and which of them are sinks: those whose norm is infinite.

    | argument | shape | dtype | |
    |---|---|---|---|
    | norms | [L, num_slots] | float32, float16, bfloat16 | contiguous |
    | offsets | [U, num_slots] | int16, int32, int64 | contiguous; U is L, or L times the key heads |
    | slots | [N] | int32, int64 | contiguous |
    | result | [L, N], [L, N], [U, N] | float32, bool, as `offsets` | norms, 0 for sinks; sinks; offsets |

    Raises:
        ValueError, TypeError: an argument has the wrong shape, dtype or device.
    """
    num_layers, num_slots = norms.shape
    check_shape("offsets", offsets, (None, num_slots))
    check_shape("slots", slots, (None,))
    check_dtype("norms", norms, *FLOAT_DTYPES)
    check_dtype("offsets", offsets, torch.int16, *INT_DTYPES)
    check_dtype("slots", slots, *INT_DTYPES)
    check_same_device(norms, offsets=offsets, slots=slots)
    check_contiguous(norms=norms, offsets=offsets, slots=slots)
    num_units, num_tokens = offsets.shape[0], slots.shape[0]
    if num_units % max(num_layers, 1):
        raise ValueError(f"offsets has {num_units} rows, expected a multiple of the {num_layers} layers")
    found = torch.empty(num_layers, num_tokens, dtype=torch.float32, device=norms.device)
    sinks = torch.empty(num_layers, num_tokens, dtype=torch.bool, device=norms.device)
    places = torch.empty(num_units, num_tokens, dtype=offsets.dtype, device=norms.device)
    if num_layers and num_tokens:
        gather_frames_kernel[(triton.cdiv(num_tokens, TOKENS_PER_BLOCK), num_units)](
            norms,
            offsets,
            slots,
            found,
            sinks,
            places,
            num_slots,
            num_tokens,
            num_layers,
            BLOCK_T=TOKENS_PER_BLOCK,
            num_warps=4,
        )
    return found, sinks, places
