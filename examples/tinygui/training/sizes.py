"""The model's dimensions, and what follows from them: parameter shapes and Hugging Face's config.json."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

PATCH = 16
MERGE = 2
GRID = (9, 14)
"""Rows and columns of visual tokens of a screen of 448 x 288 px."""
NUM_VISUAL = GRID[0] * GRID[1]
NUM_PATCHES = MERGE * MERGE
"""Patches a visual token."""
PIXELS = 3 * PATCH * PATCH
"""Values a patch."""
POSITIONS_SIDE = 32
"""The vision tower's learned positions are a square of this many on a side."""

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Sizes:
    """Dimensions; the defaults are the second model's: 8.7 million parameters, 17 MB in bfloat16."""

    hidden: int = 256
    layers: int = 6
    heads: int = 8
    kv_heads: int = 4
    head_dim: int = 64
    mlp: int = 512
    vision_width: int = 192
    vision_depth: int = 4
    vision_heads: int = 3
    vision_mlp: int = 768
    rope_theta: float = 5e6
    mrope_section: tuple[int, int, int] = (12, 10, 10)
    vocabulary: int = 192

    def text_shapes(self) -> dict[str, Shape]:
        """Parameters of the language model by Hugging Face's names."""
        top, wide, narrow = "model.language_model.", self.heads * self.head_dim, self.kv_heads * self.head_dim
        shapes: dict[str, Shape] = {f"{top}embed_tokens.weight": (self.vocabulary, self.hidden)}
        for layer in range(self.layers):
            at = f"{top}layers.{layer}."
            shapes |= {
                f"{at}input_layernorm.weight": (self.hidden,),
                f"{at}self_attn.q_proj.weight": (wide, self.hidden),
                f"{at}self_attn.k_proj.weight": (narrow, self.hidden),
                f"{at}self_attn.v_proj.weight": (narrow, self.hidden),
                f"{at}self_attn.o_proj.weight": (self.hidden, wide),
                f"{at}self_attn.q_norm.weight": (self.head_dim,),
                f"{at}self_attn.k_norm.weight": (self.head_dim,),
                f"{at}post_attention_layernorm.weight": (self.hidden,),
                f"{at}mlp.gate_proj.weight": (self.mlp, self.hidden),
                f"{at}mlp.up_proj.weight": (self.mlp, self.hidden),
                f"{at}mlp.down_proj.weight": (self.hidden, self.mlp),
            }
        return shapes | {f"{top}norm.weight": (self.hidden,), "lm_head.weight": (self.vocabulary, self.hidden)}

    def vision_shapes(self) -> dict[str, Shape]:
        """Parameters of the vision tower by Hugging Face's names."""
        top, width, merged = "model.visual.", self.vision_width, NUM_PATCHES * self.vision_width
        shapes: dict[str, Shape] = {
            f"{top}patch_embed.proj.weight": (width, 3, 2, PATCH, PATCH),
            f"{top}patch_embed.proj.bias": (width,),
            f"{top}pos_embed.weight": (POSITIONS_SIDE**2, width),
        }
        for block in range(self.vision_depth):
            at = f"{top}blocks.{block}."
            shapes |= {f"{at}{norm}.{part}": (width,) for norm in ("norm1", "norm2") for part in ("weight", "bias")}
            shapes |= _linear(f"{at}attn.qkv", width, 3 * width) | _linear(f"{at}attn.proj", width, width)
            shapes |= _linear(f"{at}mlp.linear_fc1", width, self.vision_mlp)
            shapes |= _linear(f"{at}mlp.linear_fc2", self.vision_mlp, width)
        for name, norm in (("merger", width), ("deepstack_merger_list.0", merged)):
            shapes |= {f"{top}{name}.norm.{part}": (norm,) for part in ("weight", "bias")}
            shapes |= _linear(f"{top}{name}.linear_fc1", merged, merged)
            shapes |= _linear(f"{top}{name}.linear_fc2", merged, self.hidden)
        return shapes

    def shapes(self) -> dict[str, Shape]:
        """All parameters."""
        return self.vision_shapes() | self.text_shapes()

    def hf_config(self) -> dict[str, Any]:
        """What transformers and SGLang read as config.json."""
        rope = {"rope_type": "default", "mrope_section": list(self.mrope_section), "mrope_interleaved": True}
        text = {
            "model_type": "qwen3_vl_text",
            "vocab_size": self.vocabulary,
            "hidden_size": self.hidden,
            "intermediate_size": self.mlp,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "max_position_embeddings": 8192,
            "rms_norm_eps": 1e-6,
            "rope_parameters": rope | {"rope_theta": self.rope_theta},
            "attention_bias": False,
            "attention_dropout": 0.0,
            "pad_token_id": 0,
            "bos_token_id": 0,
            "eos_token_id": 2,
            "tie_word_embeddings": False,
        }
        vision = {
            "model_type": "qwen3_vl_vision",
            "depth": self.vision_depth,
            "hidden_size": self.vision_width,
            "hidden_act": "gelu_pytorch_tanh",
            "intermediate_size": self.vision_mlp,
            "num_heads": self.vision_heads,
            "in_channels": 3,
            "patch_size": PATCH,
            "spatial_merge_size": MERGE,
            "temporal_patch_size": 2,
            "out_hidden_size": self.hidden,
            "num_position_embeddings": POSITIONS_SIDE**2,
            "deepstack_visual_indexes": [self.vision_depth - 1],
        }
        return {
            "architectures": ["Qwen3VLForConditionalGeneration"],
            "model_type": "qwen3_vl",
            "dtype": "bfloat16",
            "text_config": text,
            "vision_config": vision,
            "image_token_id": 6,
            "video_token_id": 7,
            "vision_start_token_id": 3,
            "vision_end_token_id": 4,
            "tie_word_embeddings": False,
        }


def _linear(name: str, fan_in: int, fan_out: int) -> dict[str, Shape]:
    return {f"{name}.weight": (fan_out, fan_in), f"{name}.bias": (fan_out,)}
