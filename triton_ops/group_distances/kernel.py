# mypy: allow-untyped-defs, allow-untyped-decorators
"""Distances of slot-indexed vectors to their mean over a frame, in sums of fixed order: the same in every run."""

import triton
import triton.language as tl


@triton.jit
def group_distances_kernel(
    addresses,  # [L] int64, bytes
    slots,  # [n]
    indptr,  # [F+1] int32
    counts,  # [L, n] bool
    out,  # [L, G, n] float32
    slot_stride,
    group_stride,
    num_rows,
    NUM_GROUPS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    KIND: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """One frame of one group in one layer."""
    group, frame = tl.program_id(0), tl.program_id(1)
    layer = tl.program_id(2).to(tl.int64)
    address = tl.load(addresses + layer)
    if KIND == 0:
        base = address.to(tl.pointer_type(tl.float32))
    elif KIND == 1:
        base = address.to(tl.pointer_type(tl.bfloat16))
    elif KIND == 3:
        base = address.to(tl.pointer_type(tl.float8e4nv))
    else:
        base = address.to(tl.pointer_type(tl.float16))
    start, end = tl.load(indptr + frame), tl.load(indptr + frame + 1)
    channel = tl.arange(0, BLOCK_D)
    inside, column = channel < HEAD_DIM, group * group_stride + channel
    sums, counted = tl.zeros([BLOCK_D], tl.float32), 0
    for tile in range(start, end, BLOCK_R):
        row = tile + tl.arange(0, BLOCK_R)
        used = row < end
        used = used & (tl.load(counts + layer * num_rows + row, mask=used, other=0) != 0)
        slot = tl.load(slots + row, mask=used, other=0).to(tl.int64)
        rows = tl.load(
            base + slot[:, None] * slot_stride + column[None, :], mask=used[:, None] & inside[None, :], other=0.0
        )
        sums += tl.sum(rows.to(tl.float32), axis=0)
        counted += tl.sum(used.to(tl.int32), axis=0)
    mean = sums / tl.maximum(counted, 1)
    for tile in range(start, end, BLOCK_R):
        row = tile + tl.arange(0, BLOCK_R)
        live = row < end
        slot = tl.load(slots + row, mask=live, other=0).to(tl.int64)
        mask = live[:, None] & inside[None, :]
        rows = tl.load(base + slot[:, None] * slot_stride + column[None, :], mask=mask, other=0.0).to(tl.float32)
        apart = tl.where(mask, rows - mean[None, :], 0.0)
        tl.store(out + (layer * NUM_GROUPS + group) * num_rows + row, tl.sqrt(tl.sum(apart * apart, axis=1)), mask=live)
