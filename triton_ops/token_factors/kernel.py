# mypy: allow-untyped-defs, allow-untyped-decorators
"""The strongest group of each token, and what it says."""

import triton
import triton.language as tl


@triton.jit(
    do_not_specialize=["layer_stride", "group_stride", "num_tokens"], do_not_specialize_on_alignment=["saliency"]
)
def token_factors_kernel(
    saliency,  # [L, G, V] float32
    group_factors,  # [L, G] float32
    stability,  # [L, G] float32
    copies,  # [L, V] float32, read when HAS_COPIES
    out,  # [L, V] float32
    layer_stride,
    group_stride,
    factor_layer_stride,
    factor_group_stride,
    stability_layer_stride,
    stability_group_stride,
    num_tokens,
    discount,
    NUM_GROUPS: tl.constexpr,
    HAS_COPIES: tl.constexpr,
    BLOCK_T: tl.constexpr,
):
    """BLOCK_T tokens of a layer."""
    layer = tl.program_id(1).to(tl.int64)
    token = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    exists = token < num_tokens
    best = tl.full([BLOCK_T], float("-inf"), tl.float32)
    factor = tl.zeros([BLOCK_T], tl.float32) + tl.load(group_factors + layer * factor_layer_stride)
    stable = tl.zeros([BLOCK_T], tl.float32) + tl.load(stability + layer * stability_layer_stride)
    for group in tl.static_range(NUM_GROUPS):
        value = tl.load(saliency + layer * layer_stride + group * group_stride + token, mask=exists, other=0.0)
        stronger = value > best
        best = tl.where(stronger, value, best)
        its_factor = tl.load(group_factors + layer * factor_layer_stride + group * factor_group_stride)
        its_stability = tl.load(stability + layer * stability_layer_stride + group * stability_group_stride)
        factor = tl.where(stronger, its_factor, factor)
        stable = tl.where(stronger, its_stability, stable)
    if HAS_COPIES:
        copied = tl.load(copies + layer * num_tokens + token, mask=exists, other=0.0)
        factor *= 1.0 - discount * copied * stable
    tl.store(out + layer * num_tokens + token, factor, mask=exists)
