from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from star_kv_sglang.triton_ops.window_scores import op, reference
from tests.assertions import assert_close
from tests.ops.batches import Attention

if TYPE_CHECKING:
    from tests.ops.conftest import Count

CASES: dict[str, dict[str, Any]] = {
    "one-request": {"lengths": [300], "windows": [8], "heads": 4, "groups": 2, "head_dim": 64},
    "exactly-one-tile": {"lengths": [128], "windows": [8], "heads": 4, "groups": 4, "head_dim": 64},
    "one-token-over-a-tile": {"lengths": [257], "windows": [8], "heads": 2, "groups": 1, "head_dim": 64},
    "mixed-batch": {"lengths": [5, 131, 300, 64], "windows": [5, 8, 3, 1], "heads": 4, "groups": 2, "head_dim": 64},
    "unobserved-request": {"lengths": [40, 33, 20], "windows": [4, 0, 2], "heads": 4, "groups": 2, "head_dim": 64},
    "window-is-everything": {"lengths": [8], "windows": [8], "heads": 2, "groups": 2, "head_dim": 64},
    "one-past-token": {"lengths": [9], "windows": [8], "heads": 2, "groups": 2, "head_dim": 64},
    "one-token": {"lengths": [1], "windows": [1], "heads": 2, "groups": 2, "head_dim": 64},
    "gqa-4-head-dim-80": {"lengths": [150], "windows": [8], "heads": 8, "groups": 2, "head_dim": 80},
    "gqa-7-head-dim-128": {"lengths": [200], "windows": [8], "heads": 14, "groups": 2, "head_dim": 128},
    "gqa-8": {"lengths": [140], "windows": [8], "heads": 8, "groups": 1, "head_dim": 64},
    "window-64": {"lengths": [400], "windows": [64], "heads": 7, "groups": 1, "head_dim": 64},
    "strided": {"lengths": [77, 130], "windows": [8, 2], "heads": 4, "groups": 2, "head_dim": 80, "strided": True},
    "no-pooling": {"lengths": [150], "windows": [8], "heads": 4, "groups": 2, "head_dim": 64, "pool_width": 1},
    "wide-pooling": {"lengths": [300], "windows": [8], "heads": 4, "groups": 2, "head_dim": 64, "pool_width": 13},
}


def _run(
    module: Any,
    case: dict[str, Any],
    dtype: torch.dtype,
    device: torch.device,
    key_dtype: torch.dtype | None = None,
) -> torch.Tensor:
    settings = dict(case)
    pool_width = settings.pop("pool_width", 5)
    batch = Attention.random(**settings, dtype=dtype, device=device)
    if key_dtype is not None:
        batch = replace(batch, key_cache=batch.key_cache.to(key_dtype))
    out = torch.full((settings["groups"], sum(settings["lengths"])), float("nan"), device=device)
    result = module.window_scores(
        batch.query,
        batch.query_indptr,
        batch.key_cache,
        batch.kv_indices,
        batch.kv_indptr,
        sm_scale=settings["head_dim"] ** -0.5,
        pool_width=pool_width,
        max_window=max(settings["windows"]),
        max_num_live=max(settings["lengths"]),
        out=out,
    )
    assert result is out
    return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("name", CASES)
def test_kernel_equals_reference(name: str, dtype: torch.dtype, device: torch.device, count_launches: Count) -> None:
    launches = count_launches(op)
    got = _run(op, CASES[name], dtype, device)
    assert launches == {"window_softmax_kernel": 1, "window_pool_kernel": 1}
    # Same inputs and float32 accumulation on both sides, so 16-bit inputs do not loosen the promise much.
    tolerance = torch.float32 if dtype == torch.float32 else torch.float16
    assert_close("scores", got, _run(reference, CASES[name], dtype, device), tolerance)


@pytest.mark.parametrize("name", ["mixed-batch", "unobserved-request", "gqa-7-head-dim-128", "strided"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
def test_keys_in_8_bits(name: str, dtype: torch.dtype, device: torch.device) -> None:
    """The scores are those of the rounded keys."""
    eight = torch.float8_e4m3fn
    got = _run(op, CASES[name], dtype, device, eight)
    assert_close("scores", got, _run(reference, CASES[name], dtype, device, eight), torch.float16)
    assert not torch.equal(got, _run(reference, CASES[name], dtype, device))


def _log_sums(batch: Attention, head_dim: int) -> torch.Tensor:
    """What an attention kernel returns: log2 of each window query's sum of exponentials [sum w, H]."""
    queries, groups = batch.query.float(), batch.key_cache.shape[1]
    out = torch.full(queries.shape[:2], float("nan"), device=queries.device)
    for r in range(len(batch.kv_indptr) - 1):
        keys = batch.key_cache[batch.kv_indices[batch.kv_indptr[r] : batch.kv_indptr[r + 1]].long()].float()
        start, end = batch.query_indptr[r : r + 2].tolist()
        for i in range(start, end):
            visible = keys[: len(keys) - (end - start) + i - start + 1].repeat_interleave(
                queries.shape[1] // groups, dim=1
            )
            logits = torch.einsum("hd,thd->ht", queries[i], visible) * head_dim**-0.5
            out[i] = logits.logsumexp(dim=1) / math.log(2)
    return out


@pytest.mark.parametrize("module", [op, reference], ids=["kernel", "reference"])
@pytest.mark.parametrize("name", ["mixed-batch", "unobserved-request", "window-64", "gqa-7-head-dim-128", "strided"])
def test_known_denominators_save_the_first_pass(
    name: str, module: Any, device: torch.device, count_launches: Count
) -> None:
    launches = count_launches(op)
    case = {key: value for key, value in CASES[name].items() if key != "pool_width"}
    batch = Attention.random(**case, dtype=torch.float32, device=device)
    out = torch.full((case["groups"], sum(case["lengths"])), float("nan"), device=device)
    module.window_scores(
        batch.query,
        batch.query_indptr,
        batch.key_cache,
        batch.kv_indices,
        batch.kv_indptr,
        sm_scale=case["head_dim"] ** -0.5,
        pool_width=5,
        max_window=max(case["windows"]),
        max_num_live=max(case["lengths"]),
        out=out,
        log_sums=_log_sums(batch, case["head_dim"]),
    )
    assert launches["window_softmax_kernel"] == 0
    assert_close("scores", out, _run(reference, CASES[name], torch.float32, device))


def test_a_second_call_starts_from_clean_counters(device: torch.device) -> None:
    first, second = (_run(op, CASES["mixed-batch"], torch.float32, device) for _ in range(2))
    assert torch.equal(first, second)


def _oracle(case: dict[str, Any]) -> np.ndarray[Any, Any]:
    """The definition, query by query in float64."""
    settings = dict(case)
    pool_width = settings.pop("pool_width", 5)
    batch = Attention.random(**settings, dtype=torch.float32, device=torch.device("cpu"))
    heads_per_group = settings["heads"] // settings["groups"]
    keys = batch.key_cache.double().numpy()[batch.kv_indices.numpy()]
    queries = batch.query.double().numpy()
    out = np.zeros((settings["groups"], sum(settings["lengths"])))
    first = first_query = 0
    for length, window in zip(settings["lengths"], settings["windows"], strict=True):
        past = length - window
        for head in range(settings["heads"]):
            group = head // heads_per_group
            attention = np.zeros(past)
            for i in range(window):
                visible = keys[first : first + past + i + 1, group]
                logits = visible @ queries[first_query + i, head] * settings["head_dim"] ** -0.5
                weights = np.exp(logits - logits.max())
                attention += (weights / weights.sum())[:past]
            padded = np.pad(attention, pool_width // 2)
            pooled = np.array([padded[t : t + pool_width].sum() / pool_width for t in range(past)])
            out[group, first : first + past] += pooled / heads_per_group
        first, first_query = first + length, first_query + window
    return out


@pytest.mark.parametrize(
    "name", ["mixed-batch", "unobserved-request", "one-token", "gqa-7-head-dim-128", "wide-pooling"]
)
def test_reference_equals_the_definition_in_float64(name: str) -> None:
    got = _run(reference, CASES[name], torch.float32, torch.device("cpu"))
    assert_close("scores", got, torch.from_numpy(_oracle(CASES[name])))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"pool_width": 4}, ValueError, "pool_width"),
        ({"max_window": 0}, ValueError, "max_window"),
        ({"out": torch.empty(2, 3)}, ValueError, r"out has shape \[2, 3\], expected \[2, 20\]"),
        ({"out": torch.empty(2, 20, dtype=torch.float16)}, TypeError, "out is float16, expected float32"),
        ({"key_cache": torch.zeros(9, 3, 64)}, ValueError, "not a multiple of 3 key heads"),
        ({"key_cache": torch.zeros(9, 2, 64).double()}, TypeError, "key_cache is float64"),
        ({"kv_indices": torch.zeros(20)}, TypeError, "kv_indices"),
    ],
)
def test_bad_arguments_are_named(change: dict[str, Any], error: type[Exception], message: str) -> None:
    batch = Attention.random([20], [4], heads=4, groups=2, head_dim=64, dtype=torch.float32, device=torch.device("cpu"))
    arguments: dict[str, Any] = {
        "query": batch.query,
        "query_indptr": batch.query_indptr,
        "key_cache": batch.key_cache,
        "kv_indices": batch.kv_indices,
        "kv_indptr": batch.kv_indptr,
        "sm_scale": 0.1,
        "pool_width": 5,
        "max_window": 4,
        "max_num_live": 20,
        "out": torch.empty(2 if "key_cache" not in change else change["key_cache"].shape[1], 20),
    }
    with pytest.raises(error, match=message):
        op.window_scores(**(arguments | change))
