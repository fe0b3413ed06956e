# mypy: allow-untyped-defs, allow-untyped-decorators
"""What each token counts, a layer per program; then ranks by counting, so that nothing is sorted."""

import triton
import triton.language as tl


@triton.jit
def _highest_near(board, place, inside, rows, cols, own):
    """The highest of a place, which holds ``own``, and of its up to eight neighbours."""
    row, col = place // cols, place % cols
    highest = own
    for step in tl.static_range(9):
        down, right = step // 3 - 1, step % 3 - 1
        if step != 4:
            near = inside & (row + down >= 0) & (row + down < rows) & (col + right >= 0) & (col + right < cols)
            other = tl.load(board + place + down * cols + right, mask=near, other=float("-inf"), cache_modifier=".cg")
            highest = tl.maximum(highest, other)
    return highest


# Views into batches begin anywhere, and every batch has another length: one variant serves all of them.
@triton.jit(
    do_not_specialize=["stride", "offset_stride", "num_tokens"],
    do_not_specialize_on_alignment=["distances", "offsets", "factors"],
)
def counted_kernel(
    distances,  # [L, V] float32
    offsets,  # [L, V] integer
    factors,  # [L, V] float32, read when HAS_FACTORS
    boards,  # [L, 2, rows * cols] float32: distances at their places, and which places are peaks
    counted,  # [L, V] float32
    beside,  # [L, V] float32
    stride,
    offset_stride,
    num_tokens,
    rows,
    cols,
    lowering,
    HAS_FACTORS: tl.constexpr,
    BLOCK_T: tl.constexpr,
):
    """Distance times factor, with ``lowering`` of it added for a token beside a peak."""
    layer = tl.program_id(0).to(tl.int64)
    num_places = rows * cols
    board = boards + layer * 2 * num_places
    peaks = board + num_places
    for tile in range(0, num_places, BLOCK_T):
        place = tile + tl.arange(0, BLOCK_T)
        tl.store(board + place, tl.full([BLOCK_T], float("-inf"), tl.float32), mask=place < num_places)
    tl.debug_barrier()
    for tile in range(0, num_tokens, BLOCK_T):
        token = tile + tl.arange(0, BLOCK_T)
        lives = token < num_tokens
        place = tl.load(offsets + layer * offset_stride + token, mask=lives, other=0).to(tl.int32)
        lives = lives & (place >= 0) & (place < num_places)
        tl.store(board + place, tl.load(distances + layer * stride + token, mask=lives, other=0.0), mask=lives)
    tl.debug_barrier()
    for tile in range(0, num_places, BLOCK_T):
        place = tile + tl.arange(0, BLOCK_T)
        inside = place < num_places
        own = tl.load(board + place, mask=inside, other=float("-inf"), cache_modifier=".cg")
        # An empty place is as high as its neighbourhood only where that is empty too: nobody lives beside it.
        is_peak = own >= _highest_near(board, place, inside, rows, cols, own)
        tl.store(peaks + place, is_peak.to(tl.float32), mask=inside)
    tl.debug_barrier()
    for tile in range(0, num_tokens, BLOCK_T):
        token = tile + tl.arange(0, BLOCK_T)
        lives = token < num_tokens
        count = tl.load(distances + layer * stride + token, mask=lives, other=0.0)
        if HAS_FACTORS:
            count *= tl.load(factors + layer * num_tokens + token, mask=lives, other=0.0)
        place = tl.load(offsets + layer * offset_stride + token, mask=lives, other=0).to(tl.int32)
        is_placed = lives & (place >= 0) & (place < num_places)
        own = tl.load(peaks + place, mask=is_placed, other=0.0, cache_modifier=".cg")
        is_beside = _highest_near(peaks, place, is_placed, rows, cols, own) - own
        tl.store(beside + layer * num_tokens + token, is_beside, mask=lives)
        tl.store(counted + layer * num_tokens + token, count + count * is_beside * lowering, mask=lives)


@triton.jit
def _in_order(row, token, num_tokens):
    """int32 that order like the float32 in a row; -0 equals 0, NaN is the highest, and what is no token above it."""
    values = tl.load(row + token, mask=token < num_tokens, other=0.0) + 0.0
    bits = values.to(tl.int32, bitcast=True)
    keys = tl.where(values != values, 0x7FFFFFFE, tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits))
    return tl.where(token < num_tokens, keys, 0x7FFFFFFF)


@triton.jit(do_not_specialize=["num_tokens"])
def ranks_kernel(
    counted,  # [L, V] float32
    out,  # [L, V] float32
    num_tokens,
    BLOCK_T: tl.constexpr,
    BLOCK_J: tl.constexpr,  # a multiple of BLOCK_T
):
    """How many of all V tokens each of BLOCK_T is before, over as many as that can be.

    Of equal ones the earlier is before the later, so that those in front of the block are behind it only if lower, and
    those past it also if equal.
    """
    layer = tl.program_id(1).to(tl.int64)
    row = counted + layer * num_tokens
    first = tl.program_id(0) * BLOCK_T
    token = first + tl.arange(0, BLOCK_T)
    own = _in_order(row, token, num_tokens)
    behind = tl.zeros([BLOCK_T, BLOCK_J], tl.int32)
    own_tile = first // BLOCK_J * BLOCK_J
    for tile in range(0, own_tile, BLOCK_J):
        keys = _in_order(row, tile + tl.arange(0, BLOCK_J), num_tokens)
        behind += (keys[None, :] < own[:, None]).to(tl.int32)
    other = own_tile + tl.arange(0, BLOCK_J)
    keys = _in_order(row, other, num_tokens)
    is_behind = (keys[None, :] < own[:, None]) | ((keys[None, :] == own[:, None]) & (other[None, :] > token[:, None]))
    behind += is_behind.to(tl.int32)
    for tile in range(own_tile + BLOCK_J, num_tokens, BLOCK_J):
        keys = _in_order(row, tile + tl.arange(0, BLOCK_J), num_tokens)
        behind += (keys[None, :] <= own[:, None]).to(tl.int32)
    rank = tl.div_rn(tl.sum(behind, axis=1).to(tl.float32), tl.maximum(num_tokens - 1, 1).to(tl.float32))
    tl.store(out + layer * num_tokens + token, rank, mask=token < num_tokens)
