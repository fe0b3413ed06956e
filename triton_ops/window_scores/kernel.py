# mypy: allow-untyped-defs, allow-untyped-decorators
"""Window attention in two passes over the keys: softmax denominators, then summed and pooled probabilities.

The second pass finds the keys in the L2 cache when one layer's live keys fit there.
"""

import triton
import triton.language as tl


@triton.jit
def _load_queries(
    query,
    flat,
    dim,
    is_row,
    stride_token,
    stride_head,
    NUM_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """Queries of the rows `flat` (token * H + head); broadcast `flat` and `dim` to the wanted orientation."""
    ptrs = query + (flat // NUM_HEADS) * stride_token + (flat % NUM_HEADS) * stride_head + dim
    tile = tl.load(ptrs, mask=is_row & (dim < HEAD_DIM), other=0.0)
    return tile.to(tl.float32) if UPCAST else tile


@triton.jit
def _load_keys(
    key_cache,
    query,
    slots,
    dim,
    in_range,
    group,
    stride_slot,
    stride_group,
    HEAD_DIM: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """Keys of one group gathered by slot, in the queries' dtype; broadcast `slots` and `dim` to the orientation."""
    ptrs = key_cache + slots.to(tl.int64) * stride_slot + group * stride_group + dim
    tile = tl.load(ptrs, mask=in_range & (dim < HEAD_DIM), other=0.0)
    # A pool in 8 bits holds what the tensor cores of the queries' dtype take.
    return tile.to(tl.float32) if UPCAST else tile.to(query.dtype.element_ty)


@triton.jit
def _row_index(row, query_start, group, NUM_GROUPS: tl.constexpr, HEADS_PER_GROUP: tl.constexpr):
    """Flat index of (token, head) of each row in [sum w, H]."""
    token = (query_start + row // HEADS_PER_GROUP).to(tl.int64)
    return token * (NUM_GROUPS * HEADS_PER_GROUP) + group * HEADS_PER_GROUP + row % HEADS_PER_GROUP


@triton.jit
def window_softmax_kernel(
    query,  # [sum w, H, D]
    query_indptr,  # [R+1]
    key_cache,  # [num_slots, G, D]
    kv_indices,  # [N]
    kv_indptr,  # [R+1]
    partial,  # [sum w * H, num_splits] float32: log2 of the split's sum of exponentials
    arrivals,  # [R, G, num_row_blocks] int32, all 0 before and after
    log_sums,  # [sum w * H] float32: log2 of the sum of exponentials over all keys
    query_stride_token,
    query_stride_head,
    key_stride_slot,
    key_stride_group,
    scale_log2,
    keys_per_split,
    num_splits,
    num_row_blocks,
    HEADS_PER_GROUP: tl.constexpr,
    NUM_GROUPS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_SPLITS: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """One split of the keys for BLOCK_M rows of one group of one request; the last split to arrive adds them all up."""
    # Groups first: a slot's keys of all groups lie side by side and are fetched together.
    group = tl.program_id(0) % NUM_GROUPS
    row_block = tl.program_id(0) // NUM_GROUPS
    split = tl.program_id(1)
    request = tl.program_id(2)
    query_start = tl.load(query_indptr + request)
    window = tl.load(query_indptr + request + 1) - query_start
    first = tl.load(kv_indptr + request)
    num_live = tl.load(kv_indptr + request + 1) - first
    num_rows = window * HEADS_PER_GROUP
    if row_block * BLOCK_M >= num_rows:
        return
    dim = tl.arange(0, BLOCK_D)
    row = row_block * BLOCK_M + tl.arange(0, BLOCK_M)
    is_row = row < num_rows
    flat = _row_index(row, query_start, group, NUM_GROUPS, HEADS_PER_GROUP)
    queries = _load_queries(
        query, flat[:, None], dim[None, :], is_row[:, None], query_stride_token, query_stride_head,
        NUM_GROUPS * HEADS_PER_GROUP, HEAD_DIM, UPCAST,
    )  # fmt: skip
    last_visible = num_live - window + row // HEADS_PER_GROUP
    running_max = tl.full([BLOCK_M], float("-inf"), tl.float32)
    running_sum = tl.zeros([BLOCK_M], tl.float32)
    split_start = split * keys_per_split
    split_end = tl.minimum(split_start + keys_per_split, num_live)
    for tile_start in range(split_start, split_end, BLOCK_T):
        key = tile_start + tl.arange(0, BLOCK_T)
        in_range = key < num_live
        slots = tl.load(kv_indices + first + key, mask=in_range, other=0)
        keys = _load_keys(
            key_cache, query, slots[None, :], dim[:, None], in_range[None, :], group, key_stride_slot, key_stride_group,
            HEAD_DIM, UPCAST,
        )  # fmt: skip
        logits = tl.dot(queries, keys, input_precision="ieee") * scale_log2  # [BLOCK_M, BLOCK_T]
        visible = (key[None, :] <= last_visible[:, None]) & in_range[None, :]
        logits = tl.where(visible, logits, float("-inf"))
        new_max = tl.maximum(running_max, tl.max(logits, axis=1))
        safe_max = tl.where(new_max == float("-inf"), 0.0, new_max)
        running_sum = running_sum * tl.exp2(running_max - safe_max) + tl.sum(
            tl.exp2(logits - safe_max[:, None]), axis=1
        )
        running_max = new_max
    log_sum = tl.where(
        running_sum > 0, running_max + tl.log2(tl.where(running_sum > 0, running_sum, 1.0)), float("-inf")
    )
    tl.store(partial + flat * num_splits + split, log_sum, mask=is_row)
    # Every warp's part must be written before one thread announces the split.
    tl.debug_barrier()
    counter = arrivals + (request * NUM_GROUPS + group) * num_row_blocks + row_block
    if tl.atomic_add(counter, 1) == num_splits - 1:
        index = tl.arange(0, BLOCK_SPLITS)
        written = is_row[:, None] & (index < num_splits)[None, :]
        ptrs = partial + flat[:, None] * num_splits + index[None, :]
        parts = tl.load(ptrs, mask=written, other=float("-inf"), cache_modifier=".cg")
        largest = tl.where(is_row, tl.max(parts, axis=1), 0.0)
        total = tl.sum(tl.exp2(parts - largest[:, None]), axis=1)
        tl.store(log_sums + flat, largest + tl.log2(tl.where(is_row, total, 1.0)), mask=is_row)
        tl.store(counter, 0)


@triton.jit
def window_pool_kernel(
    query,  # [sum w, H, D]
    query_indptr,  # [R+1]
    key_cache,  # [num_slots, G, D]
    kv_indices,  # [N]
    kv_indptr,  # [R+1]
    log_sums,  # [sum w * H] float32
    out,  # [G, N] float32
    query_stride_token,
    query_stride_head,
    key_stride_slot,
    key_stride_group,
    out_stride_group,
    scale_log2,
    HEADS_PER_GROUP: tl.constexpr,
    NUM_GROUPS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    POOL_WIDTH: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_D: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """Pooled scores of BLOCK_T - 2 * (POOL_WIDTH // 2) tokens; neighbouring tiles overlap by the pooling's halo."""
    HALF: tl.constexpr = POOL_WIDTH // 2
    group = tl.program_id(0)
    request = tl.program_id(2)
    query_start = tl.load(query_indptr + request)
    window = tl.load(query_indptr + request + 1) - query_start
    first = tl.load(kv_indptr + request)
    num_live = tl.load(kv_indptr + request + 1) - first
    out_start = tl.program_id(1) * (BLOCK_T - 2 * HALF)
    if out_start >= num_live:
        return
    num_past = num_live - window
    num_rows = tl.where(out_start < num_past, window * HEADS_PER_GROUP, 0)
    dim = tl.arange(0, BLOCK_D)
    key = out_start - HALF + tl.arange(0, BLOCK_T)
    is_past = (key >= 0) & (key < num_past)
    slots = tl.load(kv_indices + first + key, mask=is_past, other=0)
    keys = _load_keys(
        key_cache, query, slots[:, None], dim[None, :], is_past[:, None], group, key_stride_slot, key_stride_group,
        HEAD_DIM, UPCAST,
    )  # fmt: skip
    attention = tl.zeros([BLOCK_T], tl.float32)
    for row_start in range(0, num_rows, BLOCK_M):
        row = row_start + tl.arange(0, BLOCK_M)
        is_row = row < num_rows
        flat = _row_index(row, query_start, group, NUM_GROUPS, HEADS_PER_GROUP)
        queries = _load_queries(
            query, flat[None, :], dim[:, None], is_row[None, :], query_stride_token, query_stride_head,
            NUM_GROUPS * HEADS_PER_GROUP, HEAD_DIM, UPCAST,
        )  # fmt: skip
        log_sum = tl.load(log_sums + flat, mask=is_row, other=float("inf"))
        # Tokens are the rows of this product, so that the sum over the queries stays within a few lanes.
        logits = tl.dot(keys, queries, input_precision="ieee") * scale_log2  # [BLOCK_T, BLOCK_M]
        attention += tl.sum(tl.exp2(logits - log_sum[None, :]), axis=1)
    attention = tl.where(is_past, attention, 0.0)
    index = tl.arange(0, BLOCK_T)
    pooled = tl.zeros([BLOCK_T], tl.float32)
    for shift in tl.static_range(POOL_WIDTH):
        neighbour = tl.minimum(tl.maximum(index + (shift - HALF), 0), BLOCK_T - 1)
        pooled += tl.gather(attention, neighbour, axis=0)
    pooled = pooled / (POOL_WIDTH * HEADS_PER_GROUP)
    interior = (index >= HALF) & (index < BLOCK_T - HALF) & (key < num_live)
    group_out = out + group.to(tl.int64) * out_stride_group + first
    tl.store(group_out + key, tl.where(is_past, pooled, 0.0), mask=interior)
