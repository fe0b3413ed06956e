# mypy: allow-untyped-defs, allow-untyped-decorators
"""One segment per program."""

import triton
import triton.language as tl


@triton.jit
def apart_quotas_kernel(
    quotas,  # [S] int32
    apart,  # [N] bool
    segments,  # [S, 2] int32
    known,  # [S] int32
    grown,  # [S] int32
    told,  # [S] int32
    most,
    page_size,
    BLOCK_T: tl.constexpr,
):
    """Count what nobody knows, and let the quota grow by it."""
    segment = tl.program_id(0)
    start = tl.load(segments + 2 * segment)
    end = tl.load(segments + 2 * segment + 1)
    count = tl.load(known + segment)
    quota = tl.load(quotas + segment)
    if count < 0:
        found = tl.zeros([BLOCK_T], tl.int32)
        for tile in range(start, end, BLOCK_T):
            token = tile + tl.arange(0, BLOCK_T)
            found += (tl.load(apart + token, mask=token < end, other=0) != 0).to(tl.int32)
        count = (tl.minimum(tl.sum(found, axis=0), most) + page_size - 1) // page_size * page_size
        quota += count
    tl.store(told + segment, count)
    tl.store(grown + segment, tl.minimum(quota, end - start))
