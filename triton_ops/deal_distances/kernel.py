# mypy: allow-untyped-defs, allow-untyped-decorators
"""One read of the groups' own distances for their mean, one to deal out."""

import triton
import triton.language as tl


@triton.jit(
    do_not_specialize=[
        "stride",
        "own_layer_stride",
        "own_group_stride",
        "out_layer_stride",
        "out_group_stride",
        "num_tokens",
    ],
    do_not_specialize_on_alignment=["distances", "own", "out"],
)
def deal_distances_kernel(
    distances,  # [L, V] float32
    own,  # [L, G, V] float32
    out,  # [L, G, V] float32
    stride,
    own_layer_stride,
    own_group_stride,
    out_layer_stride,
    out_group_stride,
    num_tokens,
    NUM_GROUPS: tl.constexpr,
    BLOCK_T: tl.constexpr,
):
    """BLOCK_T tokens of a layer."""
    layer = tl.program_id(1).to(tl.int64)
    token = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    exists = token < num_tokens
    mine = own + layer * own_layer_stride + token
    total = tl.zeros([BLOCK_T], tl.float32)
    for group in tl.static_range(NUM_GROUPS):
        total += tl.load(mine + group * own_group_stride, mask=exists, other=0.0)
    mean = total / NUM_GROUPS
    distance = tl.load(distances + layer * stride + token, mask=exists, other=0.0)
    unit = tl.where(mean > 0, mean, 1.0)
    for group in tl.static_range(NUM_GROUPS):
        share = tl.where(mean > 0, tl.load(mine + group * own_group_stride, mask=exists, other=0.0) / unit, 1.0)
        tl.store(out + layer * out_layer_stride + group * out_group_stride + token, distance * share, mask=exists)
