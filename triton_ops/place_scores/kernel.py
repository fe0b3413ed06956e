# mypy: allow-untyped-defs, allow-untyped-decorators
"""The median, the count of what is prominent and the entropy of a layer's screenshot; then its tokens' scores."""

import triton
import triton.language as tl

from star_kv_sglang.triton_ops.lower_median import lower_median


@triton.jit(
    do_not_specialize=["places_stride", "stride", "beside_stride", "num_tokens"],
    do_not_specialize_on_alignment=["places", "distances", "beside"],
)
def place_scores_kernel(
    places,  # [L, V] float32
    distances,  # [L, V] float32
    beside,  # [L, V] float32
    fading,  # [L, V] float32, read when HAS_FADING
    previous_temperature,  # [L] float32, read when HAS_PREVIOUS
    out,  # [L, V] float32
    places_stride,
    stride,
    beside_stride,
    num_tokens,
    prominent,
    temperature_min,
    temperature_max,
    smoothing,
    USE_TEMPERATURE: tl.constexpr,
    HAS_FADING: tl.constexpr,
    HAS_PREVIOUS: tl.constexpr,
    BLOCK_T: tl.constexpr,
    ONE_TILE: tl.constexpr,
):
    """One layer per program."""
    layer = tl.program_id(0).to(tl.int64)
    row = distances + layer * stride
    usual = lower_median(row, 0, num_tokens, BLOCK_T, ONE_TILE)
    shown = tl.zeros([BLOCK_T], tl.int32)
    mass = tl.zeros([BLOCK_T], tl.float32)
    weighted = tl.zeros([BLOCK_T], tl.float32)
    for tile in range(0, num_tokens, BLOCK_T):
        token = tile + tl.arange(0, BLOCK_T)
        exists = token < num_tokens
        distance = tl.load(row + token, mask=exists, other=0.0)
        lowered = tl.load(beside + layer * beside_stride + token, mask=exists, other=1.0)
        shown += ((distance > prominent * usual) & (lowered == 0)).to(tl.int32)
        mass += distance
        weighted += tl.where(distance > 0, distance * tl.log(tl.where(distance > 0, distance, 1.0)), 0.0)
    count = tl.maximum(tl.sum(shown, axis=0), 1).to(tl.float32)
    power = 1.0
    if USE_TEMPERATURE:
        total = tl.sum(mass, axis=0)
        safe = tl.where(total > 0, total, 1.0)
        flat = tl.log(tl.maximum(num_tokens, 2).to(tl.float32))
        entropy = (tl.log(safe) - tl.sum(weighted, axis=0) / safe) / flat
        entropy = tl.where((total > 0) & (num_tokens > 1), entropy, 1.0)
        temperature = temperature_min + (temperature_max - temperature_min) * entropy
        if HAS_PREVIOUS:
            known = tl.load(previous_temperature + layer)
            temperature = smoothing * known + (1.0 - smoothing) * temperature
        power = 1.0 / temperature
    for tile in range(0, num_tokens, BLOCK_T):
        token = tile + tl.arange(0, BLOCK_T)
        exists = token < num_tokens
        score = count / (count + tl.load(places + layer * places_stride + token, mask=exists, other=0.0))
        if HAS_FADING:
            score *= tl.load(fading + layer * num_tokens + token, mask=exists, other=1.0)
        if USE_TEMPERATURE:
            score = tl.exp2(tl.log2(score) * power)
        tl.store(out + layer * num_tokens + token, score, mask=exists)
