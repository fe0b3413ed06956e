"""What the last queries of each turn attend to on the screenshot in view, from a transformers forward pass.

The scores are the scorer's own up to the prior: pooled window attention of each key head with the spatial boost
(STaR-KV, arXiv 2606.01790, spatial scoring), computed by the same functions.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from PIL import Image
from torch.nn import functional as F

from star_kv_sglang.algorithm.params import ScorerParams
from star_kv_sglang.tools.eval.errors import EvalError
from star_kv_sglang.tools.rollout.trajectory import Trajectory
from star_kv_sglang.triton_ops.dispatch import get_ops

_ATTENTION: Final = "star_kv_pilot"


@dataclass(frozen=True)
class SeenTurn:
    """One turn's scores on its own screenshot.

    Attributes:
        scores: float32 [L, G, V]: pooled and boosted window attention of each layer's key heads.
        rows, cols: the screenshot's grid of tokens, V of them.
    """

    scores: torch.Tensor
    rows: int
    cols: int


@dataclass(frozen=True)
class PilotPrompt:
    """A turn as it is asked.

    Attributes:
        messages: for the model's chat template; each screenshot is a part ``{"type": "image"}``.
        pictures: the screenshots' bytes, in order; the last one is in view.
        tools: what the request offers the model, for the template.
    """

    messages: Sequence[Mapping[str, Any]]
    pictures: Sequence[bytes]
    tools: Sequence[Mapping[str, Any]] = ()


def prompts_of(trajectory: Trajectory) -> list[PilotPrompt]:
    """The turns of a labelled trajectory, each with its first question in view and the right answers in its history."""
    prompts: list[PilotPrompt] = []
    messages: list[dict[str, Any]] = []
    for number, turn in enumerate(trajectory.turns):
        question = turn.questions[0]
        content = [{"type": "text", "text": turn.step}, {"type": "image"}, {"type": "text", "text": question.text}]
        messages.append({"role": "user", "content": content})
        prompts.append(PilotPrompt(list(messages), [one.image_png for one in trajectory.turns[: number + 1]]))
        messages.append({"role": "assistant", "content": question.answer})
    return prompts


class PilotModel:
    """A Qwen-VL checkpoint in transformers whose attention is watched.

    Args:
        model: the checkpoint's folder.
        params: the scorer's parameters: window, pooling and boost.
        device: where it runs; float32 on a CPU, bfloat16 elsewhere.

    Raises:
        EvalError: the model is no image-text model with decoder layers that can be watched.
    """

    def __init__(self, model: Path, params: ScorerParams, device: str) -> None:
        from transformers import AttentionInterface, AutoModelForImageTextToText, AutoProcessor

        dtype = torch.float32 if device == "cpu" else torch.bfloat16
        self._processor: Any = AutoProcessor.from_pretrained(model)
        self._model: Any = AutoModelForImageTextToText.from_pretrained(model, dtype=dtype).to(device).eval()
        self._params = params
        self._device = device
        self._frame = slice(0, 0)
        self._norms: list[torch.Tensor] = []
        self._scores: list[torch.Tensor] = []
        text = getattr(getattr(self._model, "model", None), "language_model", None)
        if text is None or not hasattr(text, "layers"):
            raise EvalError(f"{model}: no language model with layers inside; pilots know models of the Qwen-VL family")
        AttentionInterface.register(_ATTENTION, self._attend)
        text.config._attn_implementation = _ATTENTION
        for layer in text.layers:
            layer.self_attn.register_forward_pre_hook(self._note_norms, with_kwargs=True)

    @torch.inference_mode()
    def turns(self, prompts: Iterable[PilotPrompt]) -> Iterator[SeenTurn]:
        """The scores of the turns of a trajectory."""
        for prompt in prompts:
            inputs = self._inputs(prompt)
            rows, cols = self._grid(inputs)
            is_image = (inputs["input_ids"][0] == self._model.config.image_token_id).nonzero()[:, 0]
            end = int(is_image[-1]) + 1
            self._frame = slice(end - rows * cols, end)
            self._norms.clear()
            self._scores.clear()
            self._model(**inputs, use_cache=False)
            yield SeenTurn(self._boosted(), rows, cols)

    def _inputs(self, prompt: PilotPrompt) -> dict[str, Any]:
        text = self._processor.apply_chat_template(
            list(prompt.messages), tools=list(prompt.tools) or None, tokenize=False, add_generation_prompt=True
        )
        pictures = [Image.open(io.BytesIO(content)).convert("RGB") for content in prompt.pictures]
        made = self._processor(text=[text], images=pictures, return_tensors="pt")
        return dict(made.to(self._device))

    def _grid(self, inputs: dict[str, Any]) -> tuple[int, int]:
        merge = int(self._model.config.vision_config.spatial_merge_size)
        _, height, width = inputs["image_grid_thw"][-1].tolist()
        return height // merge, width // merge

    def _boosted(self) -> torch.Tensor:
        scores, norms = torch.stack(self._scores), torch.stack(self._norms)
        num_visual = scores.shape[2]
        return get_ops("reference").spatial_boost(
            scores,
            norms,
            torch.tensor([[0, num_visual]], dtype=torch.int32),
            alpha=self._params.boost_alpha,
            temperature=self._params.boost_temperature,
            max_span=num_visual,
        )

    def _note_norms(self, module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        del module, args
        self._norms.append(kwargs["hidden_states"][0, self._frame].float().norm(dim=-1).cpu())

    def _attend(
        self,
        module: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, None]:
        """Causal attention of one sequence; ``query`` [1, H, T, D], ``key`` and ``value`` [1, G, T, D]."""
        del module, attention_mask
        scale = float(kwargs.get("scaling") or query.shape[-1] ** -0.5)
        self._scores.append(self._window_scores(query[0], key[0], scale))
        heads = query.shape[1] // key.shape[1]
        out = F.scaled_dot_product_attention(
            query, key.repeat_interleave(heads, 1), value.repeat_interleave(heads, 1), is_causal=True, scale=scale
        )
        return out.transpose(1, 2), None

    def _window_scores(self, query: torch.Tensor, key: torch.Tensor, scale: float) -> torch.Tensor:
        """float32 [G, V] on the host."""
        length, window = key.shape[1], self._params.observation_window
        out = torch.empty(key.shape[0], length, dtype=torch.float32)
        get_ops("reference").window_scores(
            query[:, -window:].transpose(0, 1).float().cpu(),
            torch.tensor([0, window], dtype=torch.int32),
            key.transpose(0, 1).float().cpu(),
            torch.arange(length, dtype=torch.int32),
            torch.tensor([0, length], dtype=torch.int32),
            sm_scale=scale,
            pool_width=self._params.pool_width,
            max_window=window,
            max_num_live=length,
            out=out,
        )
        return out[:, self._frame]
