# mypy: allow-untyped-defs, allow-untyped-decorators
"""The groups of one layer of one request per program."""

import triton
import triton.language as tl


@triton.jit
def prior_factors_kernel(
    information,  # [L, R, G] float32
    prior_weights,  # [R] float32, read when HAS_TABLE
    weights,  # [L, R, G] float32
    factors,  # [L, R, G] float32
    prior_weight,
    inverse_tau,
    resolution,
    num_requests,
    NUM_GROUPS: tl.constexpr,
    HAS_TABLE: tl.constexpr,
    BLOCK_G: tl.constexpr,
):
    """Normalise, softmax, mix with 1."""
    request = tl.program_id(1)
    first = (tl.program_id(0) * num_requests + request) * NUM_GROUPS
    group = tl.arange(0, BLOCK_G)
    exists = group < NUM_GROUPS
    told = tl.load(information + first + group, mask=exists, other=0.0)
    low = tl.min(tl.where(exists, told, float("inf")), axis=0)
    spread = tl.max(tl.where(exists, told, float("-inf")), axis=0) - low
    apart = spread > resolution
    level = tl.where(apart, (told - low) / tl.where(apart, spread, 1.0), 0.5) * inverse_tau
    top = tl.max(tl.where(exists, level, float("-inf")), axis=0)
    power = tl.where(exists, tl.exp(level - top), 0.0)
    weight = power / tl.sum(power, axis=0)
    share = tl.load(prior_weights + request) if HAS_TABLE else prior_weight
    tl.store(weights + first + group, weight, mask=exists)
    tl.store(factors + first + group, (1.0 - share) + share * NUM_GROUPS * weight, mask=exists)
