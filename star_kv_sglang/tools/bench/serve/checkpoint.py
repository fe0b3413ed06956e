"""Model folders without weights: a configuration, a processor and a tokenizer that knows every id of the vocabulary.

SGLang fills the weights itself (``--load-format dummy``). Each id is one word (``w17``), so that whatever a model with
random weights says can be sent back in the next turn and finds the same tokens in the radix tree.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tokenizers import AddedToken, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import WordLevel

SPECIAL_TOKENS: Final = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
ROLES: Final = ("user", "assistant", "system")
_CHAT_TEMPLATE: Final = (
    "{%- for m in messages %}{{- '<|im_start|>' + m['role'] + ' ' }}"
    "{%- if m['content'] is string %}{{- m['content'] }}{%- else %}{%- for c in m['content'] %}"
    "{%- if c['type'] == 'text' %}{{- ' ' + c['text'] + ' ' }}"
    "{%- else %}{{- ' <|vision_start|><|image_pad|><|vision_end|> ' }}{%- endif %}{%- endfor %}{%- endif %}"
    "{{- '<|im_end|>' }}{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant ' }}{%- endif %}"
)
_PATCH_SIZE: Final = 14


@dataclass(frozen=True)
class Shape:
    """Sizes of a Qwen2.5-VL.

    Attributes:
        vocab_size: ids; the special tokens start at ``first_special``.
        text: keys of the text model's configuration, without the vocabulary.
        vision: keys of the vision tower's configuration.
        dtype: of weights and KV.
    """

    vocab_size: int
    first_special: int
    text: dict[str, Any]
    vision: dict[str, Any]
    dtype: str


SHAPES: Final[dict[str, Shape]] = {
    # UI-TARS-1.5-7B and Qwen2.5-VL-7B
    "7b": Shape(
        vocab_size=152_064,
        first_special=151_643,
        text={
            "hidden_size": 3584,
            "intermediate_size": 18_944,
            "num_hidden_layers": 28,
            "num_attention_heads": 28,
            "num_key_value_heads": 4,
            "max_position_embeddings": 128_000,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
        },
        vision={
            "depth": 32,
            "hidden_size": 1280,
            "intermediate_size": 3420,
            "num_heads": 16,
            "out_hidden_size": 3584,
            "window_size": 112,
            "fullatt_block_indexes": [7, 15, 23, 31],
        },
        dtype="bfloat16",
    ),
    # for trying the benchmark where there is no GPU, and for counting tokens; GPU kernels want heads of 64
    "tiny": Shape(
        vocab_size=1024,
        first_special=1000,
        text={
            "hidden_size": 128,
            "intermediate_size": 192,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "max_position_embeddings": 32_768,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [8, 12, 12]},
        },
        vision={
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_heads": 2,
            "out_hidden_size": 128,
            "window_size": 56,
            "fullatt_block_indexes": [1],
        },
        dtype="float32",
    ),
}


def write_checkpoint(folder: Path, shape: Shape) -> Path:
    """Fill ``folder`` with everything of a model but its weights, and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    ids = {token: shape.first_special + index for index, token in enumerate(SPECIAL_TOKENS)}
    files: dict[str, Any] = {
        "config.json": _config(shape, ids),
        "generation_config.json": {"eos_token_id": ids["<|im_end|>"], "pad_token_id": ids["<|endoftext|>"]},
        "preprocessor_config.json": _processor() | {"image_processor_type": "Qwen2VLImageProcessorFast"},
        "video_preprocessor_config.json": _processor() | {"video_processor_type": "Qwen2VLVideoProcessor"},
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": "<|im_end|>",
            "pad_token": "<|endoftext|>",
            "extra_special_tokens": list(SPECIAL_TOKENS),
            "clean_up_tokenization_spaces": False,
            "model_max_length": shape.text["max_position_embeddings"],
        },
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, indent=1), encoding="utf-8")
    (folder / "chat_template.jinja").write_text(_CHAT_TEMPLATE, encoding="utf-8")
    build_tokenizer(shape).save(str(folder / "tokenizer.json"))
    return folder


def build_tokenizer(shape: Shape) -> Tokenizer:
    """One word for each id. Words carry their own space, as SGLang needs the image tokens to touch each other."""
    words = {f"▁w{index}": index for index in range(shape.vocab_size)}
    for index, role in enumerate(ROLES):
        del words[f"▁w{index}"]
        words[f"▁{role}"] = index
    for index, token in enumerate(SPECIAL_TOKENS):
        del words[f"▁w{shape.first_special + index}"]
        words[token] = shape.first_special + index
    tokenizer = Tokenizer(WordLevel(words, unk_token="▁user"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Replace("\n", " "), normalizers.Strip()])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=True)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always", split=True)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    return tokenizer


def _config(shape: Shape, ids: dict[str, int]) -> dict[str, Any]:
    special = {
        "bos_token_id": ids["<|endoftext|>"],
        "eos_token_id": ids["<|im_end|>"],
        "pad_token_id": ids["<|endoftext|>"],
    }
    return {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "model_type": "qwen2_5_vl",
        "dtype": shape.dtype,
        # older files make transformers warn about tokenizers that are none of these
        "transformers_version": "5.0.0",
        "tie_word_embeddings": False,
        "vision_start_token_id": ids["<|vision_start|>"],
        "vision_end_token_id": ids["<|vision_end|>"],
        "vision_token_id": ids["<|vision_pad|>"],
        "image_token_id": ids["<|image_pad|>"],
        "video_token_id": ids["<|video_pad|>"],
        "text_config": {
            "model_type": "qwen2_5_vl_text",
            "vocab_size": shape.vocab_size,
            "hidden_act": "silu",
            "rms_norm_eps": 1e-6,
            "tie_word_embeddings": False,
            **special,
            **shape.text,
        },
        "vision_config": {
            "model_type": "qwen2_5_vl",
            "hidden_act": "silu",
            "in_channels": 3,
            "in_chans": 3,
            "patch_size": _PATCH_SIZE,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "tokens_per_second": 2,
            **shape.vision,
        },
        **special,
    }


def random_model(work: Path, shape: str) -> list[str]:
    """Flags of a server whose model of this shape, in a folder below ``work``, has random weights."""
    folder = write_checkpoint(work / f"model_{shape}", SHAPES[shape])
    return ["--model-path", str(folder), "--load-format", "dummy"]


def _processor() -> dict[str, Any]:
    token_pixels = (2 * _PATCH_SIZE) ** 2
    return {
        "processor_class": "Qwen2_5_VLProcessor",
        "patch_size": _PATCH_SIZE,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "size": {"shortest_edge": 4 * token_pixels, "longest_edge": 16_384 * token_pixels},
    }
