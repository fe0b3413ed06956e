"""A transformers forward pass in which exactly the tokens that each layer dropped are hidden from later queries."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.engine.conversation import Answer, Chat


@dataclass(frozen=True)
class Drop:
    """One prune of one segment, as the policy's trace tells it.

    Attributes:
        rid: The request whose prompt was pruned.
        after: Queries at this position and later no longer see what was dropped.
        start: Position of the segment's first token.
        end: Position after its last.
        kept: int64 [num_units, n], positions that stay; a unit is a layer, or a key head of a layer.
        frame: Which screenshot of the prompt, from 0.
    """

    rid: str
    after: int
    start: int
    end: int
    kept: torch.Tensor
    frame: int


def read_drops(folder: Path) -> list[Drop]:
    """All prunes that were traced into ``folder``, oldest first."""
    drops = []
    for file in sorted(folder.glob("*.npz")):
        with np.load(file) as content:
            meta = json.loads(content["meta"].tobytes())
            kept = torch.from_numpy(content["kept"]).long() + meta["frame_start"]
        start, end = (meta["frame_start"] + offset for offset in meta["segment"])
        drops.append(Drop(meta["rid"], meta["prompt_len"], start, end, kept, meta["frame_index"]))
    return drops


def drops_of(trace: Path, rid: str) -> dict[int, Drop]:
    """What the prompt of a request lost, by screenshot."""
    return {drop.frame: drop for drop in read_drops(trace) if drop.rid == rid}


class MaskedReference:
    """The model in transformers: eager attention, one forward over a whole conversation.

    Args:
        model: Folder of the checkpoint.
        dtype: Of weights and activations.
    """

    def __init__(self, model: Path, dtype: torch.dtype = torch.float32) -> None:
        from transformers import AutoModelForImageTextToText, AutoProcessor

        self._processor = AutoProcessor.from_pretrained(model)
        self._model: Any = AutoModelForImageTextToText.from_pretrained(
            model, dtype=dtype, attn_implementation="eager"
        ).eval()

    def prompt_ids(self, chat: Chat) -> list[int]:
        """Token ids of a prompt, image marks expanded."""
        ids: list[int] = self._inputs(chat)["input_ids"][0].tolist()
        return ids

    @torch.inference_mode()
    def logprobs(self, chat: Chat, output_ids: Sequence[int], drops: Sequence[Drop]) -> torch.Tensor:
        """Log-probabilities of the next token at every position of prompt and output, float32 [T, vocabulary].

        Args:
            chat: The prompt.
            output_ids: What was generated; follows the prompt.
            drops: What was hidden, and from where on; all of this conversation.
        """
        inputs = self._inputs(chat)
        answer = torch.tensor([list(output_ids)], dtype=torch.long)
        inputs["input_ids"] = torch.cat([inputs["input_ids"], answer], dim=1)
        for name in ("attention_mask", "mm_token_type_ids"):
            fill = torch.full_like(answer, int(name == "attention_mask"))
            inputs[name] = torch.cat([inputs[name], fill], dim=1)
        layers = self._model.model.language_model.layers
        length = inputs["input_ids"].shape[1]
        hooks = [
            layer.self_attn.register_forward_pre_hook(
                _use_mask(visible(index, length, drops, len(layers), layer.self_attn.config.num_attention_heads)),
                with_kwargs=True,
            )
            for index, layer in enumerate(layers)
        ]
        try:
            logits: torch.Tensor = self._model(**inputs, use_cache=False).logits[0]
        finally:
            for hook in hooks:
                hook.remove()
        return logits.float().log_softmax(-1)

    def _inputs(self, chat: Chat) -> dict[str, Any]:
        images = list(chat.images) or None
        return dict(self._processor(text=[chat.text], images=images, return_tensors="pt"))


def visible(layer: int, length: int, drops: Sequence[Drop], num_layers: int, num_heads: int) -> torch.Tensor:
    """Additive mask of one layer: 0 where a head's query (row) sees a key (column), float32 [H, length, length]."""
    sees = torch.ones(num_heads, length, length, dtype=torch.bool).tril()
    for drop in drops:
        units = len(drop.kept) // num_layers
        for head in range(num_heads):
            hidden = torch.zeros(length, dtype=torch.bool)
            hidden[drop.start : drop.end] = True
            hidden[drop.kept[layer * units + head * units // num_heads]] = False
            sees[head, drop.after :] &= ~hidden
    return torch.zeros(sees.shape).masked_fill(~sees, torch.finfo(torch.float32).min)


def worst_difference(answer: Answer, want: torch.Tensor, prompt_ids: list[int]) -> float:
    """Largest difference of log-probabilities: output tokens, and the prompt's new tokens that are not of an image.

    SGLang reports image tokens of the prompt under ids of its own, so that their log-probabilities mean nothing.
    """
    first = answer.prompt_len - 1
    got = list(answer.logprobs)
    expected = [float(want[first + i, token]) for i, token in enumerate(answer.token_ids)]
    start = answer.prompt_len - len(answer.input_logprobs)
    for position, (logprob, token) in enumerate(answer.input_logprobs, start):
        if logprob is not None and prompt_ids[position] == token:
            got.append(logprob)
            expected.append(float(want[position - 1, token]))
    assert len(got) > len(answer.token_ids) + 5
    return float((torch.tensor(got) - torch.tensor(expected)).abs().max())


def _use_mask(mask: torch.Tensor) -> Any:
    def replace_mask(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        del module
        return args, {**kwargs, "attention_mask": mask[None]}

    return replace_mask
