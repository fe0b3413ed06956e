"""A row with holes gets a page table that was made from its holes, whatever the batch is, or the step does not run."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from star_kv_sglang.attention.flashinfer_backend import StarDecodeUpdater, StarFlashInferBackend
from star_kv_sglang.engine.row_holes import RowHoles
from star_kv_sglang.errors import PageTableError
from star_kv_sglang.triton_ops.dispatch import get_ops

ROWS = torch.tensor([[0] * 6, [11, 0, 0, 14, 15, 0], [21, 22, 23, 0, 0, 0]], dtype=torch.int32)
"""Row 1 has five positions, two of them holes; row 2 has three."""


def parts(holes: list[int] | None, plan: Any = None) -> Any:
    observer = SimpleNamespace(plan=plan, scores=False, begun=[])
    observer.begin = lambda *given: observer.begun.append(given)
    return SimpleNamespace(
        batch_holes=None if holes is None else torch.tensor(holes), observer=observer, ops=get_ops("reference")
    )


def backend(of: Any) -> StarFlashInferBackend:
    made = object.__new__(StarFlashInferBackend)
    made._parts = of
    made.prefill_uses_dequant_workspace = False
    made.req_to_token_pool = SimpleNamespace(req_to_token=ROWS)
    return made


def batch(rows: list[int], lens: list[int], *, known: bool = True) -> Any:
    return SimpleNamespace(
        req_pool_indices=torch.tensor(rows),
        seq_lens=torch.tensor(lens),
        seq_lens_cpu=torch.tensor(lens) if known else None,
        out_cache_loc=torch.tensor([23]),
    )


def test_a_prefill_without_screenshots_beside_a_pruned_row_that_decodes() -> None:
    """Nothing is scored, so that there is no plan: the page table is there all the same."""
    attention = backend(parts([2, 0]))
    attention._prepare_dequant_workspace_metadata_for_extend(batch([1, 2], [5, 3]))
    assert attention.dq_page_table[:6].tolist() == [11, 14, 15, 21, 22, 23]
    assert attention.dq_paged_kernel_lens.tolist() == [3, 3]


def test_where_nothing_has_holes_and_nothing_is_scored_the_page_table_is_sglangs() -> None:
    attention = backend(parts(None))
    attention._prepare_dequant_workspace_metadata_for_extend(batch([2], [3]))
    assert attention.dq_page_table is None


@pytest.mark.parametrize(("ragged", "known"), [(True, True), (False, False)], ids=["ragged", "lengths_not_known"])
def test_a_prefill_that_cannot_be_given_its_page_table_does_not_run(ragged: bool, known: bool) -> None:
    attention = backend(parts([2]))
    with pytest.raises(PageTableError, match="prefill over pruned rows"):
        attention._prepare_dequant_workspace_metadata_for_extend(batch([1], [5], known=known), use_ragged=ragged)


@pytest.mark.parametrize("lens", [None, torch.tensor([5])], ids=["lengths_not_known", "another_page_table"])
def test_a_decode_step_that_cannot_be_given_its_page_table_does_not_run(lens: torch.Tensor | None) -> None:
    updater = object.__new__(StarDecodeUpdater)
    updater._parts = parts([2])
    with pytest.raises(PageTableError, match="decode step over pruned rows"):
        updater.call_begin_forward(
            None, torch.tensor([5]), 5, torch.zeros(2), None, None if lens is None else object(), lens,
            req_pool_indices=torch.tensor([1]),
        )  # fmt: skip


@pytest.mark.parametrize("padding", [0, 2], ids=["eager", "graph_with_padding_rows"])
def test_a_decode_step_over_pruned_rows_has_their_live_slots_and_lengths(padding: int) -> None:
    updater = object.__new__(StarDecodeUpdater)
    updater._parts, updater._rows = parts([2, 0]), ROWS
    buffer = torch.full((10,), 99, dtype=torch.int32)
    wrapper = SimpleNamespace(is_cuda_graph_enabled=padding > 0, _paged_kv_indices_buf=buffer)
    lens = torch.tensor([5, 3] + [1] * padding)
    rows = torch.tensor([1, 2] + [0] * padding)
    kv_indptr = torch.zeros(3 + padding, dtype=torch.int32)
    plan, live_lens, total = updater._live_plan(updater._parts.batch_holes, wrapper, lens, kv_indptr, lens, rows)
    assert plan.kv_indices[:total].tolist() == [11, 14, 15, 21, 22, 23] + [0] * padding
    assert plan.kv_indptr.tolist() == [0, 3, 6, 7, 8][: 3 + padding]
    assert (live_lens.tolist(), total) == ([3, 3] + [1] * padding, 6 + padding)


def test_a_row_that_nobody_planned_is_an_error_and_not_a_row_without_holes() -> None:
    rows = RowHoles()
    rows.tell(4, 7)
    rows.add(4, 2)
    assert rows.of([4]) == [9]
    with pytest.raises(PageTableError, match="row 5 of SGLang's table runs, but no prompt was planned"):
        rows.of([4, 5])
