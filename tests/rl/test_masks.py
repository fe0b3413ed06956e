"""Masks of a transformers model: causal, hidden from where a prune was on, alike in padded batches."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from star_kv_sglang.rl import KeptRecord, MaskError, PruneMask, answer_logprobs, masked_attention, visible

NUM_LAYERS, NUM_HEADS, NUM_GROUPS = 2, 4, 2
PROMPT, LENGTH = 14, 18


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=NUM_LAYERS,
        num_attention_heads=NUM_HEADS,
        num_key_value_heads=NUM_GROUPS,
        attn_implementation="sdpa",
    )
    return Qwen2ForCausalLM(config).eval()


def record_of(units: int = 1, *, first: bool = False) -> KeptRecord:
    rng = np.random.default_rng(units)
    kept = rng.random((NUM_LAYERS, units, 8)) < 0.3
    prune = PruneMask(2, 10, 12, kept)
    before = (PruneMask(2, 10, PROMPT, kept),) if first else None
    return KeptRecord(NUM_LAYERS, units, PROMPT, LENGTH, (prune,), before)


def ids(seed: int, length: int = LENGTH) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 50, (1, length)))


def inputs_of(tokens: torch.Tensor) -> tuple[dict[str, torch.Tensor], list[int]]:
    return {"input_ids": tokens[:, :PROMPT]}, tokens[0, PROMPT:].tolist()


def test_queries_see_all_before_a_prune_and_what_was_kept_behind_it() -> None:
    record = record_of()
    sees = visible(record, 1, LENGTH)
    assert sees.shape == (1, LENGTH, LENGTH)
    assert torch.equal(sees[0, :12], torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril()[:12])
    for query in range(12, LENGTH):
        assert sees[0, query, 2:10].tolist() == record.prunes[0].kept[1, 0].tolist()
        assert (
            sees[0, query, :2].all() and sees[0, query, 10 : query + 1].all() and not sees[0, query, query + 1 :].any()
        )


@pytest.mark.parametrize("units", [1, NUM_GROUPS])
@pytest.mark.parametrize("side", ["left", "right"])
@torch.inference_mode()
def test_a_padded_batch_is_its_sequences(model: Any, units: int, side: str) -> None:
    record = record_of(units)
    short, long = ids(1), ids(2, LENGTH + 5)
    pads = torch.zeros(1, 5, dtype=torch.long)
    parts = [pads, short] if side == "left" else [short, pads]
    ones = [torch.zeros_like(pads), torch.ones_like(short)] if side == "left" else [torch.ones_like(short), pads]
    mask = torch.cat([torch.cat(ones, dim=1), torch.ones_like(long)])
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    with masked_attention(model, [record, None], mask):
        batch = model(
            input_ids=torch.cat([torch.cat(parts, dim=1), long]),
            attention_mask=mask,
            position_ids=positions,
            use_cache=False,
        ).logits
    with masked_attention(model, [record]):
        alone = model(input_ids=short, use_cache=False).logits
    first = 5 if side == "left" else 0
    torch.testing.assert_close(batch[0, first : first + LENGTH], alone[0], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(batch[1], model(input_ids=long, use_cache=False).logits[0], atol=1e-5, rtol=1e-4)
    whole = model(input_ids=short, use_cache=False).logits
    torch.testing.assert_close(alone[0, :12], whole[0, :12], atol=1e-5, rtol=1e-4)
    assert (alone[0, 12:] - whole[0, 12:]).abs().max() > 1e-3


def test_gradients_flow_and_hooks_are_gone(model: Any) -> None:
    inputs, output = inputs_of(ids(3))
    logprobs = answer_logprobs(model, inputs, output, record_of())
    assert logprobs.shape == (LENGTH - PROMPT,) and logprobs.dtype == torch.float32
    logprobs.sum().backward()
    assert model.model.layers[0].self_attn.q_proj.weight.grad.abs().sum() > 0
    whole = answer_logprobs(model, inputs, output, None)
    again = answer_logprobs(model, inputs, output, None)
    assert torch.equal(whole, again) and (whole - logprobs).abs().max() > 1e-4


@torch.inference_mode()
def test_the_first_token_may_have_seen_another_end_of_the_prompt(model: Any) -> None:
    inputs, output = inputs_of(ids(4))
    got = answer_logprobs(model, inputs, output, record_of(first=True))
    later = answer_logprobs(model, inputs, output, record_of())
    whole = answer_logprobs(model, inputs, output, None)
    torch.testing.assert_close(got[1:], later[1:])
    torch.testing.assert_close(got[0], whole[0], atol=1e-6, rtol=1e-5)
    assert (got[0] - later[0]).abs() > 1e-5


def test_what_does_not_fit_is_refused(model: Any) -> None:
    inputs, output = inputs_of(ids(5))
    fitting = record_of()
    wrong = KeptRecord(3, 1, PROMPT, LENGTH, ())
    for record, change, message in (
        (wrong, {}, "3 layers"),
        (KeptRecord(2, 1, PROMPT - 1, LENGTH, ()), {}, "a prompt of 13"),
        (KeptRecord(2, 1, PROMPT, LENGTH + 1, ()), {}, "an answer of 5"),
        (fitting, {"input_ids": ids(5)[:, :PROMPT].repeat(2, 1)}, "one sequence"),
    ):
        with pytest.raises(MaskError, match=message):
            answer_logprobs(model, {**inputs, **change}, output, record)
    with masked_attention(model, [fitting, None]), pytest.raises(MaskError, match="has 2 records"):
        model(input_ids=ids(5), use_cache=False)
    with masked_attention(model, [fitting]), pytest.raises(MaskError, match="a record of 18"):
        model(input_ids=ids(5)[:, :10], use_cache=False)
    with masked_attention(model, [fitting]), pytest.raises(MaskError, match="use_cache=False"):
        model(input_ids=ids(5), use_cache=True)
    model.config._attn_implementation = "flash_attention_2"
    try:
        with pytest.raises(MaskError, match="flash_attention_2"), masked_attention(model, [fitting]):
            pass
    finally:
        model.config._attn_implementation = "sdpa"
    with pytest.raises(MaskError, match="no attention modules"), masked_attention(torch.nn.Linear(2, 2), [fitting]):
        pass
