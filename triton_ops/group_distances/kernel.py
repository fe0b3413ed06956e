# mypy: allow-untyped-defs, allow-untyped-decorators
"""Distances of slot-indexed vectors to their mean over a frame, in sums of fixed order: the same in every run.

Two launches, both cut into blocks of rows, so that all processors have work with a single frame too.
"""

import triton
import triton.language as tl


@triton.jit
def _vectors(
    addresses, layer, slots, row, used, column, inside, slot_stride, KIND: tl.constexpr, ALIGNED: tl.constexpr
):
    """Rows of one layer's pool as float32, 0 where unused."""
    address = tl.load(addresses + layer)
    if KIND == 0:
        base = address.to(tl.pointer_type(tl.float32))
    elif KIND == 1:
        base = address.to(tl.pointer_type(tl.bfloat16))
    elif KIND == 3:
        base = address.to(tl.pointer_type(tl.float8e4nv))
    else:
        base = address.to(tl.pointer_type(tl.float16))
    if ALIGNED:
        # Without this word a pointer out of a table is read two bytes at a time.
        base = tl.multiple_of(base, 16)
    slot = tl.load(slots + row, mask=used, other=0).to(tl.int64)
    mask = used[:, None] & inside[None, :]
    return tl.load(base + slot[:, None] * slot_stride + column[None, :], mask=mask, other=0.0).to(tl.float32)


@triton.jit
def block_sums_kernel(
    addresses,  # [L] int64, bytes
    slots,  # [n]
    indptr,  # [F+1] int32
    counts,  # [L, n] bool
    sums,  # [L, G, F, B, D] float32
    slot_stride,
    group_stride,
    num_rows,
    num_blocks,
    NUM_GROUPS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    KIND: tl.constexpr,
    ALIGNED: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """What the rows that count add up to, of one block of one frame of one group in one layer."""
    group, block = tl.program_id(0) % NUM_GROUPS, tl.program_id(0) // NUM_GROUPS
    frame = tl.program_id(1)
    layer = tl.program_id(2).to(tl.int64)
    end = tl.load(indptr + frame + 1)
    row = tl.load(indptr + frame) + block * BLOCK_R + tl.arange(0, BLOCK_R)
    used = row < end
    used = used & (tl.load(counts + layer * num_rows + row, mask=used, other=0) != 0)
    channel = tl.arange(0, BLOCK_D)
    inside = channel < HEAD_DIM
    rows = _vectors(
        addresses, layer, slots, row, used, group * group_stride + channel, inside, slot_stride, KIND, ALIGNED
    )
    place = ((layer * NUM_GROUPS + group) * tl.num_programs(1) + frame) * num_blocks + block
    tl.store(sums + place * HEAD_DIM + channel, tl.sum(rows, axis=0), mask=inside)


@triton.jit
def group_distances_kernel(
    addresses,  # [L] int64, bytes
    slots,  # [n]
    indptr,  # [F+1] int32
    counts,  # [L, n] bool
    sums,  # [L, G, F, B, D] float32
    out,  # [L, G, n] float32
    slot_stride,
    group_stride,
    num_rows,
    num_blocks,
    NUM_GROUPS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    KIND: tl.constexpr,
    ALIGNED: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_B: tl.constexpr,
):
    """Distances of one block of rows; every block adds up the frame's sums in the same order."""
    group, block = tl.program_id(0) % NUM_GROUPS, tl.program_id(0) // NUM_GROUPS
    frame = tl.program_id(1)
    layer = tl.program_id(2).to(tl.int64)
    start, end = tl.load(indptr + frame), tl.load(indptr + frame + 1)
    row = start + block * BLOCK_R + tl.arange(0, BLOCK_R)
    live = row < end
    channel = tl.arange(0, BLOCK_D)
    inside = channel < HEAD_DIM
    rows = _vectors(
        addresses, layer, slots, row, live, group * group_stride + channel, inside, slot_stride, KIND, ALIGNED
    )
    counted = 0
    for tile in range(start, end, BLOCK_N):
        other = tile + tl.arange(0, BLOCK_N)
        counted += tl.sum(
            (tl.load(counts + layer * num_rows + other, mask=other < end, other=0) != 0).to(tl.int32), axis=0
        )
    first = ((layer * NUM_GROUPS + group) * tl.num_programs(1) + frame) * num_blocks
    total = tl.zeros([BLOCK_D], tl.float32)
    for tile in range(0, tl.cdiv(end - start, BLOCK_R), BLOCK_B):
        part = tile + tl.arange(0, BLOCK_B)
        known = (part < num_blocks)[:, None] & (part * BLOCK_R < end - start)[:, None] & inside[None, :]
        total += tl.sum(
            tl.load(sums + (first + part)[:, None] * HEAD_DIM + channel[None, :], mask=known, other=0.0), axis=0
        )
    mean = total / tl.maximum(counted, 1)
    apart = tl.where(live[:, None] & inside[None, :], rows - mean[None, :], 0.0)
    tl.store(out + (layer * NUM_GROUPS + group) * num_rows + row, tl.sqrt(tl.sum(apart * apart, axis=1)), mask=live)
