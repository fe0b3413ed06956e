"""A stand-in for `sgl_kernel`, so that SGLang 0.5.23 runs on a machine without a GPU.

The `sgl_kernel` wheel that SGLang depends on needs libcuda to be imported. With `SGLANG_USE_CPU_ENGINE=1` SGLang takes
PyTorch for the mathematics and needs from `sgl_kernel` one function, which is here, and a few names that it imports and
does not call, which raise here when they are called. Never installed: `star_kv_sglang.cpu_mode` puts this folder in
front of the import path, and only on a machine without a GPU.

`convert_weight_packed` must not exist: SGLang takes its presence for Intel AMX (`sglang/srt/utils/common.py`).
"""

from __future__ import annotations

import torch
from sgl_kernel.unavailable import declare_ops, unavailable

__version__ = "0.0.0+star.kv.cpu.stand.in"


def assign_req_to_token_pool_cpu(
    req_pool_indices: torch.Tensor,
    req_to_token: torch.Tensor,
    start_offset: torch.Tensor,
    end_offset: torch.Tensor,
    out_cache_loc: torch.Tensor,
    pool_len: int,
) -> None:
    """Write new slots into the rows of their requests, as `assign_req_to_token_pool` does on a GPU.

    Row `req_pool_indices[i]` gets the next `end_offset[i] - start_offset[i]` slots of `out_cache_loc` at the positions
    from `start_offset[i]` on. Source: `sglang/srt/mem_cache/allocation.py`, the Triton kernel of the same name.

    Args:
        req_pool_indices: [batch] int64, rows.
        req_to_token: [rows, pool_len] int32, changed in place.
        start_offset: [batch] integer, first position.
        end_offset: [batch] integer, behind the last position.
        out_cache_loc: [sum of lengths] integer, slots of all requests one after the other.
        pool_len: length of a row; part of the kernel's signature.
    """
    first = 0
    spans = zip(req_pool_indices.tolist(), start_offset.tolist(), end_offset.tolist(), strict=True)
    for row, start, end in spans:
        last = first + end - start
        req_to_token[row, start:end] = out_cache_loc[first:last].to(req_to_token.dtype)
        first = last


_SPECULATIVE = "speculative decoding"

assign_draft_cache_locs_contiguous_cpu = unavailable("assign_draft_cache_locs_contiguous_cpu", _SPECULATIVE)
assign_extend_cache_locs_cpu = unavailable("assign_extend_cache_locs_cpu", _SPECULATIVE)
build_tree_kernel_efficient_cpu = unavailable("build_tree_kernel_efficient_cpu", _SPECULATIVE)
fill_accept_out_cache_loc_cpu = unavailable("fill_accept_out_cache_loc_cpu", _SPECULATIVE)
fill_bonus_tokens_cpu = unavailable("fill_bonus_tokens_cpu", _SPECULATIVE)
rotate_input_ids_cpu = unavailable("rotate_input_ids_cpu", _SPECULATIVE)
verify_tree_greedy_cpu = unavailable("verify_tree_greedy_cpu", _SPECULATIVE)
copy_all_layer_kv_cache_cpu = unavailable("copy_all_layer_kv_cache_cpu", "moving KV cache on the CPU")

# Bound by name when `sglang.srt.models.qwen3_5` is imported, which happens with every Qwen-VL model, and `grok`.
_OPS = torch.library.Library("sgl_kernel", "FRAGMENT")
declare_ops(
    _OPS,
    (
        "fused_dual_residual_rmsnorm_cpu(Tensor x) -> Tensor",
        "fused_moe_router_cpu(Tensor x) -> Tensor",
        "rmsnorm_cpu(Tensor x) -> Tensor",
        "fused_sigmoid_mul_cpu(Tensor x) -> Tensor",
        "fused_qk_gemma_rmsnorm_cpu(Tensor x) -> Tensor",
        "fused_qk_gemma_rmsnorm_with_gate_cpu(Tensor x) -> Tensor",
        "fused_qkvzba_split_reshape_cat_contiguous_cpu(Tensor x) -> Tensor",
    ),
)
