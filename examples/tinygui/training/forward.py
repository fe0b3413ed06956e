"""The Qwen3-VL forward pass as plain functions over parameters with Hugging Face's names.

No Python depends on values, and shapes follow from the layout alone, so a whole training step can be captured in a
CUDA graph. It computes what transformers' ``Qwen3VLForConditionalGeneration`` computes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch.nn import functional as F

from tinygui.training.sizes import GRID, MERGE, NUM_PATCHES, NUM_VISUAL, PIXELS, POSITIONS_SIDE, Sizes

Parameters = Mapping[str, torch.Tensor]
_EPS = 1e-6
_VISION_THETA = 10_000.0


class Tables:
    """What does not change: rotations of patches and of text, and the interpolation of learned positions.

    Attributes:
        cos, sin: [126, 4, D] of each visual token's patches, D the vision tower's head size.
        frequencies: float32 [head_dim / 2], and ``axis`` int64, which of the three positions turns each of them.
        words: int64 [vocabulary].
        interpolations: [504, 1024] each, how the patches' positions mix the learned ones: as transformers computes it
            (``aligned``), and as SGLang does (``centred``).
    """

    def __init__(self, sizes: Sizes, dtype: torch.dtype, device: torch.device) -> None:
        head = sizes.vision_width // sizes.vision_heads
        rows, columns = patch_places()
        turns = 1 / _VISION_THETA ** (torch.arange(0, head // 2, 2).float() / (head // 2))
        angles = torch.cat([rows[:, None] * turns, columns[:, None] * turns], dim=1).repeat(1, 2)
        self.cos = angles.cos().view(NUM_VISUAL, NUM_PATCHES, head).to(device, dtype)
        self.sin = angles.sin().view(NUM_VISUAL, NUM_PATCHES, head).to(device, dtype)
        half = sizes.head_dim // 2
        self.frequencies = (1 / sizes.rope_theta ** (torch.arange(half).float() / half)).to(device)
        index = torch.arange(half)
        axis = torch.where(index < 3 * sizes.mrope_section[1], index % 3, torch.zeros_like(index))
        self.axis = axis.to(device)
        self.words = torch.arange(sizes.vocabulary, device=device)
        self.interpolations = {
            corners: interpolate(aligned=corners == "aligned").to(device, dtype) for corners in ("aligned", "centred")
        }


def patch_places() -> tuple[torch.Tensor, torch.Tensor]:
    """Row and column of every patch, float32 [504], in the order in which the tower takes patches: by visual token."""
    rows, columns = GRID[0] * MERGE, GRID[1] * MERGE
    order = torch.arange(rows * columns).view(GRID[0], MERGE, GRID[1], MERGE).transpose(1, 2).flatten()
    return (order // columns).float(), (order % columns).float()


def interpolate(*, aligned: bool) -> torch.Tensor:
    """Bilinear weights [504, 1024] from learned positions to patches.

    ``aligned`` puts the outermost patches on the outermost positions, as transformers does; otherwise patches are
    cells of the same square, as in SGLang unless it is told ``--enable-precise-embedding-interpolation``.
    """
    rows, columns = patch_places()
    weights = [_along(GRID[0] * MERGE, aligned)[rows.long()], _along(GRID[1] * MERGE, aligned)[columns.long()]]
    return (weights[0][:, :, None] * weights[1][:, None, :]).flatten(1)


def _along(length: int, aligned: bool) -> torch.Tensor:
    """Weights [length, 32] along one side."""
    if aligned:
        places = torch.linspace(0, POSITIONS_SIDE - 1, length)
    else:
        places = ((torch.arange(length) + 0.5) * (POSITIONS_SIDE / length) - 0.5).clamp(0, POSITIONS_SIDE - 1)
    return (1 - (places[:, None] - torch.arange(POSITIONS_SIDE)).abs()).clamp(min=0)


def vision(
    p: Parameters,
    sizes: Sizes,
    tables: Tables,
    patches: torch.Tensor,
    shown: torch.Tensor | None,
    interpolation: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The vision tower.

    Args:
        patches: uint8 [N, V, 4, 768], the pixels of each visual token's patches, channel by channel.
        shown: int64 [N, V], which of the screen's 126 tokens these are; None when it is all of them.
        interpolation: One of ``tables.interpolations``.

    Returns:
        What stands in for the screens' tokens and what deepstack adds behind the first layer, [N, V, hidden] each.
    """
    top = "model.visual."
    dtype = p[f"{top}pos_embed.weight"].dtype
    count, num_visual = patches.shape[:2]
    pixels = patches.to(dtype).sub(127.5).div(127.5).view(count, num_visual * NUM_PATCHES, PIXELS)
    # A screen is a film of two equal pictures: the kernel's two halves add up.
    kernel = p[f"{top}patch_embed.proj.weight"].sum(2).flatten(1)
    hidden = F.linear(pixels, kernel, p[f"{top}patch_embed.proj.bias"])
    places = (interpolation @ p[f"{top}pos_embed.weight"]).view(NUM_VISUAL, -1)
    cos, sin = tables.cos, tables.sin
    if shown is not None:
        chosen = (shown[..., None] == torch.arange(NUM_VISUAL, device=shown.device)).to(dtype)
        places, cos, sin = chosen @ places, cos[shown], sin[shown]
    hidden = hidden + places.view(-1, num_visual * NUM_PATCHES, sizes.vision_width)
    shape = (-1, num_visual * NUM_PATCHES, 1, sizes.vision_width // sizes.vision_heads)
    cos, sin = cos.reshape(shape), sin.reshape(shape)
    for block in range(sizes.vision_depth):
        at = f"{top}blocks.{block}."
        hidden = hidden + _vision_attention(p, at, sizes, _layer_norm(p, f"{at}norm1", hidden), cos, sin)
        inner = F.gelu(_linear(p, f"{at}mlp.linear_fc1", _layer_norm(p, f"{at}norm2", hidden)), approximate="tanh")
        hidden = hidden + _linear(p, f"{at}mlp.linear_fc2", inner)
    merged = (count, num_visual, NUM_PATCHES * sizes.vision_width)
    main = _merge(p, f"{top}merger", _layer_norm(p, f"{top}merger.norm", hidden).view(merged))
    deep_name = f"{top}deepstack_merger_list.0"
    deep = _merge(p, deep_name, _layer_norm(p, f"{deep_name}.norm", hidden.view(merged)))
    return main, deep


def _vision_attention(
    p: Parameters, at: str, sizes: Sizes, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
) -> torch.Tensor:
    heads = _linear(p, f"{at}attn.qkv", x).unflatten(2, (3, sizes.vision_heads, -1))
    query, key = _rotated(heads[:, :, 0], cos, sin), _rotated(heads[:, :, 1], cos, sin)
    out = F.scaled_dot_product_attention(query.transpose(1, 2), key.transpose(1, 2), heads[:, :, 2].transpose(1, 2))
    return _linear(p, f"{at}attn.proj", out.transpose(1, 2).flatten(2))


def _merge(p: Parameters, name: str, x: torch.Tensor) -> torch.Tensor:
    return _linear(p, f"{name}.linear_fc2", F.gelu(_linear(p, f"{name}.linear_fc1", x)))


def _linear(p: Parameters, name: str, x: torch.Tensor) -> torch.Tensor:
    return F.linear(x, p[f"{name}.weight"], p[f"{name}.bias"])


def _layer_norm(p: Parameters, name: str, x: torch.Tensor) -> torch.Tensor:
    return F.layer_norm(x, x.shape[-1:], p[f"{name}.weight"], p[f"{name}.bias"], _EPS)


def _rms_norm(p: Parameters, name: str, x: torch.Tensor) -> torch.Tensor:
    return F.rms_norm(x, x.shape[-1:], p[f"{name}.weight"], _EPS)


def _rotated(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin


def rotations(tables: Tables, positions: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines [B, L, 1, head_dim] of positions int64 [B, 3, L]."""
    angles = positions.float().index_select(1, tables.axis).transpose(1, 2) * tables.frequencies
    angles = angles.repeat(1, 1, 2)[:, :, None]
    return angles.cos().to(dtype), angles.sin().to(dtype)


def embed(
    p: Parameters, tables: Tables, tokens: torch.Tensor, visual: Sequence[int], screens: torch.Tensor
) -> torch.Tensor:
    """Words and screens in one sequence [B, L, hidden]; ``screens`` [B, S, V, hidden] stand from ``visual`` on."""
    weight = p["model.language_model.embed_tokens.weight"]
    # A product with one-hot rows: its gradient is a product as well, and needs no scattered additions.
    words = (tokens[..., None] == tables.words).to(weight.dtype) @ weight
    return spliced(words, visual, screens)


def spliced(base: torch.Tensor, visual: Sequence[int], screens: torch.Tensor) -> torch.Tensor:
    """``base`` [B, L, C] with the screens' rows in place of its own."""
    pieces, at = [], 0
    for index, start in enumerate(visual):
        pieces += [base[:, at:start], screens[:, index]]
        at = start + screens.shape[2]
    return torch.cat([*pieces, base[:, at:]], dim=1)


def text(
    p: Parameters,
    sizes: Sizes,
    tables: Tables,
    hidden: torch.Tensor,
    positions: torch.Tensor,
    bias: torch.Tensor,
    deep: torch.Tensor,
) -> torch.Tensor:
    """The language model, before its head.

    Args:
        hidden: [B, L, hidden].
        positions: int64 [B, 3, L].
        bias: [L, L], 0 where a row sees a column, -inf elsewhere.
        deep: [B, L, hidden], added behind the first layer.
    """
    cos, sin = rotations(tables, positions, hidden.dtype)
    for layer in range(sizes.layers):
        at = f"model.language_model.layers.{layer}."
        x = _rms_norm(p, f"{at}input_layernorm", hidden)
        hidden = hidden + _text_attention(p, f"{at}self_attn.", sizes, x, cos, sin, bias)
        x = _rms_norm(p, f"{at}post_attention_layernorm", hidden)
        gate, up = F.linear(x, p[f"{at}mlp.gate_proj.weight"]), F.linear(x, p[f"{at}mlp.up_proj.weight"])
        hidden = hidden + F.linear(F.silu(gate) * up, p[f"{at}mlp.down_proj.weight"])
        if layer == 0:
            hidden = hidden + deep
    return _rms_norm(p, "model.language_model.norm", hidden)


def _text_attention(
    p: Parameters,
    at: str,
    sizes: Sizes,
    x: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    bias: torch.Tensor,
) -> torch.Tensor:
    query, key, value = (
        F.linear(x, p[f"{at}{name}_proj.weight"]).unflatten(2, (-1, sizes.head_dim)) for name in ("q", "k", "v")
    )
    query = _rotated(_rms_norm(p, f"{at}q_norm", query), cos, sin).transpose(1, 2)
    key = _rotated(_rms_norm(p, f"{at}k_norm", key), cos, sin).transpose(1, 2)
    group = sizes.heads // sizes.kv_heads
    key, value = key.repeat_interleave(group, 1), value.transpose(1, 2).repeat_interleave(group, 1)
    mask = bias.expand(len(x), sizes.heads, -1, -1)
    out = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    return F.linear(out.transpose(1, 2).flatten(2), p[f"{at}o_proj.weight"])
