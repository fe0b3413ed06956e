"""FlashInfer over compacted pages: SGLang's backend with a page table that leaves holes out.

The kernels run unchanged. Only the metadata differs, and only for batches in which some row has holes: the page table
comes from ``page_table`` and lengths are live lengths, which the policy knows on the host, so that no step waits for
the device. It follows from the rows' holes, whatever else a batch is: a prefill, a decode step, or both at once. Where
a row has holes and no such table can be given, the step raises.
"""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from sglang.srt.layers.attention.flashinfer_backend import FlashInferAttnBackend, FlashInferIndicesUpdaterDecode

from star_kv_sglang.engine.ranges import profiled, stage
from star_kv_sglang.errors import PageTableError

if TYPE_CHECKING:
    from sglang.srt.layers.radix_attention import RadixAttention
    from sglang.srt.model_executor.forward_batch_info import ForwardBatch
    from sglang.srt.model_executor.model_runner import ModelRunner

    from star_kv_sglang.engine.model_parts import ModelParts

KV_INDICES_SLACK = 256
"""Entries behind the page table that FlashInfer's prefill may read ahead into (as SGLang allocates them)."""


class RecordingWrapper:
    """A FlashInfer prefill wrapper that also keeps what its kernel knows of every query: the log-sum-exp.

    With it the observation window is scored by reading the keys once more instead of twice.

    Args:
        wrapper: FlashInfer's wrapper, planned.
    """

    def __init__(self, wrapper: Any) -> None:
        self._wrapper = wrapper
        self.log_sums: torch.Tensor | None = None

    def forward(self, query: torch.Tensor, kv_cache: Any, **kwargs: Any) -> torch.Tensor:
        """Attention of the new tokens, [num_new_tokens, H, D]; ``log_sums`` [num_new_tokens, H] float32, base 2."""
        out: torch.Tensor
        out, self.log_sums = self._wrapper.forward_return_lse(query, kv_cache, **kwargs)
        return out


class StarDecodeUpdater(FlashInferIndicesUpdaterDecode):
    """Decode metadata from live rows, for the eager path and for CUDA graphs.

    Args:
        model_runner: SGLang's model runner.
        attn_backend: The backend.
        parts: Know the holes of the running batch.
    """

    def __init__(self, model_runner: ModelRunner, attn_backend: StarFlashInferBackend, parts: ModelParts) -> None:
        self._parts = parts
        self._rows: torch.Tensor = model_runner.req_to_token_pool.req_to_token
        super().__init__(model_runner, attn_backend)

    def call_begin_forward(
        self,
        wrapper: Any,
        paged_kernel_lens: torch.Tensor,
        paged_kernel_lens_sum: int,
        kv_indptr: torch.Tensor,
        kv_start_idx: torch.Tensor | None,
        spec_info: Any,
        seq_lens_cpu: torch.Tensor | None,
        *args: Any,
        req_pool_indices: torch.Tensor,
        **kwargs: Any,
    ) -> None:
        """Plan a decode step; stock SGLang where no row has holes.

        Raises:
            PageTableError: A row has holes, and its length is not known here, or its page table comes from elsewhere.
        """
        holes = self._parts.batch_holes
        if holes is not None:
            if seq_lens_cpu is None or spec_info is not None:
                raise PageTableError("a decode step over pruned rows came without its lengths, or with a page table")
            spec_info, seq_lens_cpu, paged_kernel_lens_sum = self._live_plan(
                holes, wrapper, paged_kernel_lens, kv_indptr, seq_lens_cpu, req_pool_indices
            )
        super().call_begin_forward(
            wrapper,
            paged_kernel_lens,
            paged_kernel_lens_sum,
            kv_indptr,
            kv_start_idx,
            spec_info,
            seq_lens_cpu,
            *args,
            req_pool_indices=req_pool_indices,
            **kwargs,
        )

    def _live_plan(
        self,
        holes: torch.Tensor,
        wrapper: Any,
        lens: torch.Tensor,
        kv_indptr: torch.Tensor,
        seq_lens_cpu: torch.Tensor,
        req_pool_indices: torch.Tensor,
    ) -> tuple[SimpleNamespace, torch.Tensor, int]:
        """Page table of a step over rows with holes, in the form in which SGLang takes one, live lengths and their sum.

        Args:
            holes: int64 [R], of each row; a graph has padding rows behind them.
            wrapper: FlashInfer's; a graph's has a page table of its own to write to.
            lens: Of all rows, on the device.
            kv_indptr: int32, at least one more than there are rows; written to.
            seq_lens_cpu: Of all rows.
            req_pool_indices: Their rows in SGLang's table.
        """
        num_rows, padded = len(holes), len(req_pool_indices)
        live_lens = seq_lens_cpu.to(torch.int64).clone()
        longest = int(live_lens[:num_rows].max())
        live_lens[:num_rows] -= holes
        num_live, total = int(live_lens[:num_rows].sum()), int(live_lens.sum())
        if wrapper.is_cuda_graph_enabled:
            kv_indices = wrapper._paged_kv_indices_buf
        else:
            kv_indices = torch.empty(total, dtype=torch.int32, device=kv_indptr.device)
        with profiled("page_table"):
            self._parts.ops.page_table(
                self._rows,
                req_pool_indices[:num_rows],
                lens[:num_rows],
                max_seq_len=longest,
                kv_indptr=kv_indptr[: num_rows + 1],
                kv_indices=kv_indices,
            )
        if padded > num_rows:
            # A graph's padding rows read the padding slot, as in stock SGLang.
            kv_indices[num_live:total] = 0
            kv_indptr[num_rows + 1 : padded + 1] = kv_indptr[num_rows] + torch.cumsum(lens[num_rows:padded], dim=0)
        return SimpleNamespace(kv_indptr=kv_indptr[: padded + 1], kv_indices=kv_indices), live_lens, total


class StarFlashInferBackend(FlashInferAttnBackend):
    """FlashInfer attention over rows with holes.

    Args:
        model_runner: SGLang's model runner.
        parts: Watch the forward.
        init_new_workspace: As in SGLang.
    """

    forward_metadata: Any

    def __init__(self, model_runner: ModelRunner, parts: ModelParts, *, init_new_workspace: bool = False) -> None:
        super().__init__(model_runner, init_new_workspace=init_new_workspace)
        self._parts = parts
        self._recorder: RecordingWrapper | None = None
        self.indices_updater_decode = StarDecodeUpdater(model_runner, self, parts)

    def init_forward_metadata(self, forward_batch: ForwardBatch) -> None:
        """Plan the step; in a prefill that is observed, attention is to return its log-sum-exp."""
        super().init_forward_metadata(forward_batch)
        self._recorder = None
        observer = self._parts.observer
        if not observer.scores or not forward_batch.forward_mode.is_extend():
            return
        metadata = self.forward_metadata
        self._recorder = RecordingWrapper(metadata.prefill_wrappers[0])
        self.forward_metadata = replace(metadata, prefill_wrappers=[self._recorder])

    def _prepare_dequant_workspace_metadata_for_extend(
        self, forward_batch: ForwardBatch, use_ragged: bool = False
    ) -> None:
        """Supply the prefill's page table where a row has holes or keys are to be scored.

        SGLang asks here for a page table of its own making; with ``dq_page_table`` unset it builds the stock one. Rows
        that decode in the same batch are among them.

        Raises:
            PageTableError: A row has holes, and SGLang would read it without the page table, or its length is not
                known.
        """
        super()._prepare_dequant_workspace_metadata_for_extend(forward_batch, use_ragged)
        observer, holes = self._parts.observer, self._parts.batch_holes
        plan = observer.plan
        if holes is None and plan is None:
            return
        lens = forward_batch.seq_lens_cpu
        if use_ragged or lens is None:
            if holes is not None:
                raise PageTableError("a prefill over pruned rows has no paged attention, or came without its lengths")
            return
        num_live = int(lens.sum()) - (0 if holes is None else int(holes.sum()))
        device = forward_batch.req_pool_indices.device
        with stage("page_table"):
            kv_indptr = torch.empty(len(lens) + 1, dtype=torch.int32, device=device)
            kv_indices = torch.zeros(num_live + KV_INDICES_SLACK, dtype=torch.int32, device=device)
            self._parts.ops.page_table(
                self.req_to_token_pool.req_to_token,
                forward_batch.req_pool_indices,
                forward_batch.seq_lens,
                max_seq_len=int(lens.max()),
                kv_indptr=kv_indptr,
                kv_indices=kv_indices,
            )
            self.dq_page_table = kv_indices
            self.dq_paged_kernel_lens = kv_indptr[1:] - kv_indptr[:-1]
        if plan is not None:
            observer.begin(forward_batch.out_cache_loc, kv_indices[:num_live], kv_indptr)

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
        query = q.view(-1, layer.tp_q_head_num, layer.head_dim)
        log_sums = None if self._recorder is None else self._recorder.log_sums
        # K lies in a pool of 8 bits divided by its scale.
        sm_scale = layer.scaling * (layer.k_scale_float or 1.0)
        self._parts.observer.observe_queries(layer.layer_id, query, sm_scale, log_sums)
        return out
