"""A trainer's log-probabilities of what an engine has answered, under what the engine could attend to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from star_kv_sglang.kept_format import KeptRecord
from star_kv_sglang.rl.masks import MaskError, masked_attention

if TYPE_CHECKING:
    from torch import nn


def token_logprobs(
    model: nn.Module, inputs: Mapping[str, Any], output_ids: Sequence[int], record: KeptRecord | None
) -> torch.Tensor:
    """Log-probabilities of every next token of prompt and answer, float32 [T, vocabulary]; gradients flow.

    Of a long prompt that is much memory: a vocabulary's float32 for each of its tokens. `answer_logprobs` takes it for
    the answer alone.

    Args:
        model: A transformers model of the engine's weights, with eager or SDPA attention.
        inputs: What the model's processor makes of the prompt and its screenshots; one sequence.
        output_ids: The answer.
        record: What the answer could attend to; None for everything.

    Raises:
        MaskError: The model or the prompt does not fit the record.
    """
    return _last_logprobs(model, inputs, output_ids, record, 0)


def _last_logprobs(
    model: nn.Module, inputs: Mapping[str, Any], output_ids: Sequence[int], record: KeptRecord | None, num_last: int
) -> torch.Tensor:
    """As :func:`token_logprobs`, of the last ``num_last`` positions; 0 for all."""
    prompt = inputs["input_ids"]
    if prompt.shape[0] != 1:
        raise MaskError(f"this takes one sequence, not {prompt.shape[0]}; use masked_attention for a batch")
    if record is not None and (record.prompt_len != prompt.shape[1] or record.length < prompt.shape[1]):
        raise MaskError(
            f"the record is of a prompt of {record.prompt_len} tokens, and this one has {prompt.shape[1]}: "
            "process the same text and images, of the same size, as the engine has"
        )
    if record is not None and record.length != prompt.shape[1] + len(output_ids):
        raise MaskError(
            f"the record is of an answer of {record.length - record.prompt_len} tokens, not of {len(output_ids)}"
        )
    answer = torch.tensor([list(output_ids)], dtype=torch.long, device=prompt.device)
    whole = {**inputs, "input_ids": torch.cat([prompt, answer], dim=1)}
    for name in ("attention_mask", "mm_token_type_ids"):
        if name in whole:
            fill = torch.full_like(answer, int(name == "attention_mask")).to(whole[name].dtype)
            whole[name] = torch.cat([whole[name], fill], dim=1)
    with masked_attention(model, [record]):
        logits: torch.Tensor = model(**whole, use_cache=False, logits_to_keep=num_last).logits[0]
    return logits.float().log_softmax(-1)


def answer_logprobs(
    model: nn.Module, inputs: Mapping[str, Any], output_ids: Sequence[int], record: KeptRecord | None
) -> torch.Tensor:
    """Log-probability of each token of an answer, float32 [num_output]; gradients flow. As :func:`token_logprobs`."""
    every = _last_logprobs(model, inputs, output_ids, record, len(output_ids) + 1)[:-1]
    if record is not None and record.first is not None:
        # The engine has made it of a prompt's end that later tokens did not find.
        alone = _last_logprobs(model, inputs, output_ids[:1], record.of_first_token(), 2)[:-1]
        every = torch.cat([alone, every[1:]])
    answer = torch.tensor(list(output_ids), dtype=torch.long, device=every.device)
    return every.gather(1, answer[:, None])[:, 0]
