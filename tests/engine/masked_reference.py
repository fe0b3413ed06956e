"""A transformers forward pass in which exactly the tokens that each layer dropped are hidden from later queries."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from star_kv_sglang.rl import KeptRecord, PruneMask, answer_logprobs, read_kept, token_logprobs
from star_kv_sglang.rl.masks import attention_modules
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
        drops.append(Drop(meta["rid"], meta["after"], start, end, kept, meta["frame_index"]))
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
        prompt_len = inputs["input_ids"].shape[1]
        record = record_of(drops, self.num_layers, prompt_len, prompt_len + len(output_ids))
        return token_logprobs(self._model, inputs, output_ids, record)

    @torch.inference_mode()
    def recomputed(self, chat: Chat, answer: Answer, *, masked: bool = True) -> torch.Tensor:
        """A trainer's log-probabilities of an answer that came with its record, float32 [num_output]."""
        record = read_kept(answer.meta) if masked else None
        return answer_logprobs(self._model, self._inputs(chat), answer.token_ids, record)

    @property
    def num_layers(self) -> int:
        """Layers of the language model."""
        return len(attention_modules(self._model))

    def _inputs(self, chat: Chat) -> dict[str, Any]:
        images = list(chat.images) or None
        return dict(self._processor(text=[chat.text], images=images, return_tensors="pt"))


def record_of(drops: Sequence[Drop], num_layers: int, prompt_len: int, length: int) -> KeptRecord:
    """What traces tell, as a server would return it."""
    prunes, units = [], 1
    for drop in drops:
        kept = np.zeros((len(drop.kept), drop.end - drop.start), np.bool_)
        np.put_along_axis(kept, drop.kept.numpy() - drop.start, True, axis=1)
        units = len(drop.kept) // num_layers
        prunes.append(PruneMask(drop.start, drop.end, drop.after, kept.reshape(num_layers, units, -1)))
    return KeptRecord(num_layers, units, prompt_len, length, tuple(prunes))


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
