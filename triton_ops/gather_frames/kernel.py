# mypy: allow-untyped-defs, allow-untyped-decorators
"""Offsets of every unit; norms of the layers, which are the first rows."""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["num_tokens"])
def gather_frames_kernel(
    norms,  # [L, num_slots] float
    offsets,  # [U, num_slots] integer
    slots,  # [N] integer
    found,  # [L, N] float32
    sinks,  # [L, N] bool
    places,  # [U, N] integer
    num_slots,
    num_tokens,
    num_layers,
    BLOCK_T: tl.constexpr,
):
    """BLOCK_T tokens of one row."""
    row = tl.program_id(1).to(tl.int64)
    token = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    exists = token < num_tokens
    slot = tl.load(slots + token, mask=exists, other=0).to(tl.int64)
    place = tl.load(offsets + row * num_slots + slot, mask=exists, other=0)
    tl.store(places + row * num_tokens + token, place, mask=exists)
    if row < num_layers:
        norm = tl.load(norms + row * num_slots + slot, mask=exists, other=0.0).to(tl.float32)
        is_sink = norm == float("inf")
        tl.store(found + row * num_tokens + token, tl.where(is_sink, 0.0, norm), mask=exists)
        tl.store(sinks + row * num_tokens + token, is_sink, mask=exists)
