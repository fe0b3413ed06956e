"""SGLang's torch-native attention over rows with holes: the CPU's backend and the reference of the others."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from sglang.srt.layers.attention.torch_native_backend import TorchNativeAttnBackend

if TYPE_CHECKING:
    from sglang.srt.layers.radix_attention import RadixAttention
    from sglang.srt.model_executor.forward_batch_info import ForwardBatch
    from sglang.srt.model_executor.model_runner import ModelRunner

    from star_kv_sglang.engine.model_parts import ModelParts


class StarTorchNativeBackend(TorchNativeAttnBackend):
    """Gives stock attention a compacted page table: rows without holes, live lengths instead of logical ones.

    New tokens are the last of a row and never holes, so the causal mask is right-aligned as before.

    Args:
        model_runner: SGLang's model runner.
        parts: Watch the forward.
    """

    def __init__(self, model_runner: ModelRunner, parts: ModelParts) -> None:
        super().__init__(model_runner)
        self._parts = parts
        self._rows: torch.Tensor | None = None
        self._live_lens: torch.Tensor | None = None

    def init_forward_metadata(self, forward_batch: ForwardBatch) -> None:
        """Compact the batch's rows, once for all layers."""
        super().init_forward_metadata(forward_batch)
        table = self.req_to_token_pool.req_to_token
        seq_lens = forward_batch.seq_lens.to(torch.int64)
        longest = int(seq_lens.max()) if len(seq_lens) else 0
        rows = table[forward_batch.req_pool_indices.to(torch.int64), :longest]
        inside = torch.arange(longest, device=rows.device) < seq_lens[:, None]
        live = inside & (rows != 0)
        self._live_lens = live.sum(dim=1)
        # Live slots first, in order: a stable sort by "is a hole".
        self._rows = rows.gather(1, (~live).to(torch.int8).argsort(dim=1, stable=True))
        observer = self._parts.observer
        if observer.plan is not None and forward_batch.forward_mode.is_extend():
            indptr = torch.zeros(len(seq_lens) + 1, dtype=torch.int32, device=rows.device)
            indptr[1:] = self._live_lens.cumsum(0)
            observer.begin(forward_batch.out_cache_loc, rows[live], indptr)

    def forward_extend(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        layer: RadixAttention,
        forward_batch: ForwardBatch,
        save_kv_cache: bool = True,
    ) -> torch.Tensor:
        """Stock attention; then the policy's queries score the layer's keys."""
        out: torch.Tensor = super().forward_extend(q, k, v, layer, forward_batch, save_kv_cache)
        query = q.view(-1, layer.tp_q_head_num, layer.qk_head_dim)
        self._parts.observer.observe_queries(layer.layer_id, query, layer.scaling)
        return out

    def _run_sdpa_forward_extend(
        self,
        query: torch.Tensor,
        output: torch.Tensor,
        k_cache: torch.Tensor,
        v_cache: torch.Tensor,
        req_to_token: torch.Tensor,
        req_pool_indices: torch.Tensor,
        seq_lens: torch.Tensor,
        extend_prefix_lens: torch.Tensor,
        extend_seq_lens: torch.Tensor,
        *args: Any,
        **kwargs: Any,
    ) -> torch.Tensor:
        rows, live_lens = self._compacted()
        out: torch.Tensor = super()._run_sdpa_forward_extend(
            query,
            output,
            k_cache,
            v_cache,
            rows,
            torch.arange(len(rows), device=rows.device),
            live_lens,
            live_lens - extend_seq_lens,
            extend_seq_lens,
            *args,
            **kwargs,
        )
        return out

    def _run_sdpa_forward_decode(
        self,
        query: torch.Tensor,
        output: torch.Tensor,
        k_cache: torch.Tensor,
        v_cache: torch.Tensor,
        req_to_token: torch.Tensor,
        req_pool_indices: torch.Tensor,
        seq_lens: torch.Tensor,
        *args: Any,
        **kwargs: Any,
    ) -> torch.Tensor:
        rows, live_lens = self._compacted()
        out: torch.Tensor = super()._run_sdpa_forward_decode(
            query,
            output,
            k_cache,
            v_cache,
            rows,
            torch.arange(len(rows), device=rows.device),
            live_lens,
            *args,
            **kwargs,
        )
        return out

    def _compacted(self) -> tuple[torch.Tensor, torch.Tensor]:
        if self._rows is None or self._live_lens is None:
            raise RuntimeError("attention ran before init_forward_metadata; SGLang's order of calls has changed")
        return self._rows, self._live_lens
