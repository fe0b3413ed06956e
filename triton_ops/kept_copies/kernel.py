# mypy: allow-untyped-defs, allow-untyped-decorators
"""The earlier screenshot laid out on its grid, and read at the places of the present one; a layer per program."""

import triton
import triton.language as tl


# Views into batches begin anywhere, and every batch has another length: one variant serves all of them.
@triton.jit(
    do_not_specialize=[
        "stride",
        "offset_stride",
        "earlier_stride",
        "earlier_offset_stride",
        "num_tokens",
        "num_earlier",
    ],
    do_not_specialize_on_alignment=["distances", "offsets", "earlier_distances", "earlier_offsets"],
)
def kept_copies_kernel(
    distances,  # [L, V] float32
    offsets,  # [L, V] integer
    earlier_distances,  # [L, W] float32
    earlier_offsets,  # [L, W] integer
    board,  # [L, num_places] float32
    out,  # [L, V] float32
    stride,
    offset_stride,
    earlier_stride,
    earlier_offset_stride,
    num_tokens,
    num_earlier,
    num_places,
    tolerance,
    BLOCK_T: tl.constexpr,
):
    """A place where no token lives is infinitely far from every distance."""
    layer = tl.program_id(0).to(tl.int64)
    cells = board + layer * num_places
    for tile in range(0, num_places, BLOCK_T):
        place = tile + tl.arange(0, BLOCK_T)
        tl.store(cells + place, tl.full([BLOCK_T], float("-inf"), tl.float32), mask=place < num_places)
    tl.debug_barrier()
    for tile in range(0, num_earlier, BLOCK_T):
        token = tile + tl.arange(0, BLOCK_T)
        lives = token < num_earlier
        place = tl.load(earlier_offsets + layer * earlier_offset_stride + token, mask=lives, other=0).to(tl.int32)
        lives = lives & (place >= 0) & (place < num_places)
        distance = tl.load(earlier_distances + layer * earlier_stride + token, mask=lives, other=0.0)
        tl.store(cells + place, distance, mask=lives)
    tl.debug_barrier()
    for tile in range(0, num_tokens, BLOCK_T):
        token = tile + tl.arange(0, BLOCK_T)
        lives = token < num_tokens
        place = tl.load(offsets + layer * offset_stride + token, mask=lives, other=0).to(tl.int32)
        distance = tl.load(distances + layer * stride + token, mask=lives, other=0.0)
        is_placed = lives & (place >= 0) & (place < num_places)
        earlier = tl.load(cells + place, mask=is_placed, other=float("-inf"), cache_modifier=".cg")
        same = tl.abs(earlier - distance) <= tolerance * distance
        tl.store(out + layer * num_tokens + token, same.to(tl.float32), mask=lives)
