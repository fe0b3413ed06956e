"""Tiny checkpoints with random weights that SGLang and transformers load from a folder.

The tokenizer, its 154 words and its chat template are those of the shipped example model. Weights are drawn so that
attention is peaked (a dropped token is felt) and norm weights differ from one (norms after a layer's input norm would
be constant otherwise). They come in two widths: GPU kernels want heads of 64.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

EXAMPLE_MODEL = Path(__file__).resolve().parents[2] / "examples" / "tinygui" / "model"
"""Folder of the trained model that the repository ships."""

FIRST_WORD, NUM_WORDS = 11, 154
"""Ids of plain words are FIRST_WORD .. NUM_WORDS - 1; the ids before are special tokens and roles."""

_VOCAB = 192
_SPECIAL_IDS = {"vision_start_token_id": 3, "vision_end_token_id": 4, "image_token_id": 6, "video_token_id": 7}
_NARROW = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
_WIDE = {"hidden_size": 512, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 64}
_TEXT = {
    "vocab_size": _VOCAB,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-6,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
}


def make_qwen2_vl(folder: Path, *, wide: bool = False) -> Path:
    """Qwen2-VL: patches of 14 pixels, 28 x 28 pixels a token, 3 layers, 4 query and 2 KV heads of 16, or 8
    and 4 of 64.
    """
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

    config = Qwen2VLConfig(
        text_config=_text([2, 3, 3], wide),
        vision_config={
            "depth": 2, "embed_dim": 32, "hidden_size": _size(wide)["hidden_size"], "num_heads": 2, "mlp_ratio": 2,
            "patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2, "in_channels": 3,
            "in_chans": 3,  # SGLang reads the name that published checkpoints use
        },
        tie_word_embeddings=False,
        **_SPECIAL_IDS,
    )  # fmt: skip
    return _write(folder, Qwen2VLForConditionalGeneration, config, seed=2, processor="Qwen2VLProcessor", patch_size=14)


def make_qwen2_5_vl(folder: Path, *, wide: bool = False) -> Path:
    """Qwen2.5-VL: patches of 14 pixels, 28 x 28 pixels a token, otherwise as `make_qwen2_vl`."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    config = Qwen2_5_VLConfig(
        text_config=_text([2, 3, 3], wide),
        vision_config={
            "depth": 2, "hidden_size": 32, "out_hidden_size": _size(wide)["hidden_size"], "intermediate_size": 48,
            "num_heads": 2, "patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2, "window_size": 56,
            "fullatt_block_indexes": [1], "tokens_per_second": 2,
        },
        tie_word_embeddings=False,
        **_SPECIAL_IDS,
    )  # fmt: skip
    return _write(
        folder, Qwen2_5_VLForConditionalGeneration, config, seed=25, processor="Qwen2_5_VLProcessor", patch_size=14
    )


def make_qwen3_vl(folder: Path, *, wide: bool = False) -> Path:
    """Qwen3-VL: patches of 16 pixels, 32 x 32 pixels a token, deepstack, otherwise as `make_qwen2_vl`."""
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

    config = Qwen3VLConfig(
        text_config=_text([4, 2, 2], wide, mrope_interleaved=True),
        vision_config={
            "depth": 2, "hidden_size": 32, "out_hidden_size": _size(wide)["hidden_size"], "intermediate_size": 48,
            "num_heads": 2, "patch_size": 16, "spatial_merge_size": 2, "temporal_patch_size": 2,
            "num_position_embeddings": 144, "deepstack_visual_indexes": [0],
        },
        tie_word_embeddings=False,
        **_SPECIAL_IDS,
    )  # fmt: skip
    return _write(folder, Qwen3VLForConditionalGeneration, config, seed=3, processor="Qwen3VLProcessor", patch_size=16)


def make_qwen3_vl_moe(folder: Path, *, wide: bool = False) -> Path:
    """Qwen3-VL with 4 experts in each layer, 2 of which compute a token; otherwise as `make_qwen3_vl`."""
    from transformers import Qwen3VLMoeConfig, Qwen3VLMoeForConditionalGeneration

    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48, "norm_topk_prob": True}
    config = Qwen3VLMoeConfig(
        text_config={**_text([4, 2, 2], wide, mrope_interleaved=True), **experts},
        vision_config={
            "depth": 3, "hidden_size": 32, "out_hidden_size": _size(wide)["hidden_size"], "intermediate_size": 48,
            "num_heads": 2, "patch_size": 16, "spatial_merge_size": 2, "temporal_patch_size": 2,
            "num_position_embeddings": 144,
            "deepstack_visual_indexes": [0, 1, 2],  # three as in published checkpoints, which SGLang takes for granted
        },
        tie_word_embeddings=False,
        **_SPECIAL_IDS,
    )  # fmt: skip
    _write(folder, Qwen3VLMoeForConditionalGeneration, config, seed=30, processor="Qwen3VLProcessor", patch_size=16)
    # Published checkpoints have experts the other way round; transformers reads both, SGLang those.
    for file in folder.glob("*.safetensors"):
        weights = {
            name: value.transpose(1, 2).contiguous() if ".experts." in name else value
            for name, value in load_file(file).items()
        }
        save_file(weights, file, metadata={"format": "pt"})
    return folder


def make_llama(folder: Path, *, wide: bool = False) -> Path:
    """Llama, a model without vision."""
    from transformers import LlamaConfig, LlamaForCausalLM

    return _write(folder, LlamaForCausalLM, LlamaConfig(**_TEXT, **_size(wide)), seed=1)


MAKERS: dict[str, Callable[..., Path]] = {
    "qwen2_vl": make_qwen2_vl,
    "qwen2_5_vl": make_qwen2_5_vl,
    "qwen3_vl": make_qwen3_vl,
    "qwen3_vl_moe": make_qwen3_vl_moe,
    "llama": make_llama,
}
"""Makers by name; each fills a folder and returns it."""


def _size(wide: bool) -> dict[str, int]:
    return _WIDE if wide else _NARROW


def _text(section: list[int], wide: bool, **rope: Any) -> dict[str, Any]:
    """The text model; ``section`` divides the rotary pairs of a head of 16."""
    size = _size(wide)
    section = [pairs * size["head_dim"] // 16 for pairs in section]
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": section, **rope}
    return {**_TEXT, **size, "rope_parameters": rope}


def _write(
    folder: Path,
    model_class: type[Any],
    config: Any,
    *,
    seed: int,
    processor: str | None = None,
    patch_size: int = 0,
) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    config.dtype = "float32"
    torch.manual_seed(seed)
    model = model_class(config).float()
    _randomize(model)
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copyfile(EXAMPLE_MODEL / name, folder / name)
    if processor is not None:
        _write_processor(folder, processor, patch_size)
    return folder


def _randomize(model: nn.Module) -> None:
    """Draw all weights anew; rows of the head that are no words are zero, so that greedy decoding says words only."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() == 1:
                center = 0.0 if name.endswith("bias") else 1.0
                weight.normal_(center, 0.3)
            elif "embed" in name and "patch" not in name:
                weight.normal_(0.0, 1.0)
            else:
                weight.normal_(0.0, 1.5 / math.sqrt(weight[0].numel()))
        head = model.get_output_embeddings().weight  # type: ignore[operator]
        head[:FIRST_WORD] = 0.0
        head[NUM_WORDS:] = 0.0


def _write_processor(folder: Path, processor: str, patch_size: int) -> None:
    token_pixels = (2 * patch_size) ** 2
    preprocessor = {
        "image_processor_type": "Qwen2VLImageProcessorFast",
        "processor_class": processor,
        "patch_size": patch_size,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "size": {"shortest_edge": 4 * token_pixels, "longest_edge": 400 * token_pixels},
    }
    video_processor = "Qwen3VLVideoProcessor" if processor == "Qwen3VLProcessor" else "Qwen2VLVideoProcessor"
    video = {k: v for k, v in preprocessor.items() if k != "image_processor_type"}
    files = {
        "preprocessor_config.json": preprocessor,
        "video_preprocessor_config.json": video | {"video_processor_type": video_processor},
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, indent=1), encoding="utf-8")
