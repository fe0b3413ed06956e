"""Parameters: how they start, the flat memory they live in, and the Hugging Face folder they are saved as.

All parameters lie in one flat float32 tensor, the optimizer's; the forward pass reads a copy in its own type, of which
every parameter is a view. One kernel refreshes the copy, and the optimizer takes a few kernels in all.
"""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file

from tinygui.training.sizes import PATCH, POSITIONS_SIDE, Sizes

SHIPPED = Path(__file__).parent.parent / "model"
"""The first model: tokenizer, chat template and processors are the same."""
SHARD_BYTES = 14_000_000
"""Largest file of weights."""
_COPIED = (
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "generation_config.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
)
_CORRELATION = 0.5
_TEXT_CORRELATION = 0.25
_HEAD = 0.1
_EMBEDDING = 0.5
_SINUSOID = 0.5
_FLOOR = 1e-3


class Weights:
    """The parameters of a model.

    Args:
        sizes: Dimensions.
        seed: Of the start values.
        dtype: What the forward pass computes in.
        device: Where.

    Attributes:
        flat: float32 [P], the parameters that are trained; matrices first.
        num_matrix: How many of them are elements of matrices, which decay.
        leaves: The copy that the forward pass reads, by name.
    """

    def __init__(self, sizes: Sizes, seed: int, dtype: torch.dtype, device: torch.device) -> None:
        self.sizes = sizes
        start = initial(sizes, seed)
        names = sorted(start, key=lambda name: not _decays(name, start[name]))
        self.flat = torch.cat([start[name].flatten() for name in names]).to(device)
        self.num_matrix = sum(start[name].numel() for name in names if _decays(name, start[name]))
        self._copy = self.flat.to(dtype, copy=True)
        self.leaves: dict[str, torch.Tensor] = {}
        self._spans: dict[str, tuple[int, int]] = {}
        offset = 0
        for name in names:
            size = start[name].numel()
            view = self._copy[offset : offset + size].view(start[name].shape)
            self.leaves[name] = view.detach().requires_grad_()
            self._spans[name] = offset, offset + size
            offset += size

    def whiten(self, patches: torch.Tensor) -> None:
        """Start the tower's first layer from what screens look like; ``patches`` uint8 [N, 768] on the CPU."""
        kernel, bias = whitening(patches, self.sizes.vision_width)
        name = "model.visual.patch_embed.proj"
        weight = self.flat[slice(*self._spans[f"{name}.weight"])].view(self.leaves[f"{name}.weight"].shape)
        # Half for each of the film's two pictures.
        weight.copy_(kernel.view(len(kernel), 3, 1, PATCH, PATCH) / 2)
        self.flat[slice(*self._spans[f"{name}.bias"])].copy_(bias)
        self.refresh()

    def refresh(self) -> None:
        """Bring the copy up to date with ``flat``."""
        self._copy.copy_(self.flat)

    def state(self) -> dict[str, torch.Tensor]:
        """The parameters by name, float32 on the CPU."""
        flat = self.flat.detach().cpu()
        return {name: flat[slice(*self._spans[name])].view(leaf.shape).clone() for name, leaf in self.leaves.items()}


def _decays(name: str, value: torch.Tensor) -> bool:
    return value.dim() > 1 and "embed" not in name.replace("patch_embed", "")


def initial(sizes: Sizes, seed: int) -> dict[str, torch.Tensor]:
    """Start values, float32 on the CPU.

    What a head of the language model writes starts as a copy of what it reads: without it, what a screen shows reaches
    the answer only through the product of two random matrices, drowned in noise, and letters are not learned at all.
    Queries and keys of a head start correlated, so that tokens look for tokens like themselves, patches for patches
    near them; in the language model less, as an answer's tokens would else see little but themselves. The vision
    tower's positions start as sinusoids of row and column; what else writes into a residual stream starts smaller with
    its depth.
    """
    generator = torch.Generator().manual_seed(seed)
    values = {name: _start(name, shape, sizes, generator) for name, shape in sizes.shapes().items()}
    group = sizes.heads // sizes.kv_heads
    for layer in range(sizes.layers):
        at = f"model.language_model.layers.{layer}.self_attn."
        query = values[f"{at}q_proj.weight"].view(sizes.kv_heads, group, sizes.head_dim, sizes.hidden)
        key = values[f"{at}k_proj.weight"].view(sizes.kv_heads, 1, sizes.head_dim, sizes.hidden)
        query.mul_(math.sqrt(1 - _TEXT_CORRELATION**2)).add_(key, alpha=_TEXT_CORRELATION)
        value = values[f"{at}v_proj.weight"].view(sizes.kv_heads, 1, sizes.head_dim, sizes.hidden)
        copied = value.expand(-1, group, -1, -1).reshape(-1, sizes.hidden)
        values[f"{at}o_proj.weight"] = copied.T * (sizes.hidden / len(copied))
    for block in range(sizes.vision_depth):
        query, key, _ = values[f"model.visual.blocks.{block}.attn.qkv.weight"].chunk(3)
        query.mul_(math.sqrt(1 - _CORRELATION**2)).add_(key, alpha=_CORRELATION)
    values["model.visual.pos_embed.weight"] = sinusoids(sizes.vision_width)
    return values


def _start(name: str, shape: tuple[int, ...], sizes: Sizes, generator: torch.Generator) -> torch.Tensor:
    if "norm" in name:
        return torch.ones(shape) if name.endswith("weight") else torch.zeros(shape)
    if name.endswith("bias"):
        return torch.zeros(shape)
    noise = torch.randn(shape, generator=generator)
    if "embed_tokens" in name:
        return noise * _EMBEDDING
    if name == "lm_head.weight":
        return noise * _HEAD
    scale = math.prod(shape[1:]) ** -0.5
    if "down_proj" in name:
        scale *= (2 * sizes.layers) ** -0.5
    elif "attn.proj" in name or "mlp.linear_fc2" in name:
        scale *= (2 * sizes.vision_depth) ** -0.5
    elif "deepstack" in name and "fc2" in name:
        scale *= 0.1
    scaled: torch.Tensor = noise * scale
    return scaled


def whitening(patches: torch.Tensor, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Kernel [width, 768] and bias [width] that turn patches into their principal components of about equal size.

    Flat patches are most of a screen, so without this the strokes of letters, which are small differences among few
    patches, are hardly seen by a kernel at random. Components weaker than a thousandth of the mean stay weak, so that
    grain is not made as loud as strokes.

    Args:
        patches: uint8 [N, 768], what screens look like.
    """
    x = (patches.float() - 127.5) / 127.5
    mean = x.mean(0)
    variance, directions = torch.linalg.eigh((x - mean).T @ (x - mean) / len(x))
    variance, directions = variance.flip(0)[:width].clamp(min=0), directions.flip(1)[:, :width]
    floor = _FLOOR * variance.mean()
    kernel = (directions / (variance + floor).sqrt()).T
    return kernel, -kernel @ mean


def sinusoids(width: int, side: int = POSITIONS_SIDE) -> torch.Tensor:
    """2-D sinusoids [side * side, width]: the first half of a row from its row, the second from its column."""
    quarter = width // 4
    periods = torch.logspace(math.log10(2.5), math.log10(4 * side), quarter)
    angles = torch.arange(side)[:, None] * (2 * math.pi / periods)
    line = torch.cat([angles.sin(), angles.cos()], dim=1)
    rows, columns = line[:, None].expand(-1, side, -1), line[None].expand(side, -1, -1)
    both = torch.cat([rows, columns], dim=2).reshape(side * side, -1)
    return both * _SINUSOID


def save(weights: Weights, folder: Path, like: Path) -> None:
    """Writes a folder that transformers and SGLang load: weights in bfloat16, the rest as in the folder ``like``."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in _COPIED:
        shutil.copyfile(like / name, folder / name)
    (folder / "config.json").write_text(json.dumps(weights.sizes.hf_config(), indent=1) + "\n", encoding="utf-8")
    state = {name: value.to(torch.bfloat16).contiguous() for name, value in weights.state().items()}
    shards: list[dict[str, torch.Tensor]] = [{}]
    room = SHARD_BYTES
    for name in sorted(state):
        size = 2 * state[name].numel()
        if size > room:
            shards.append({})
            room = SHARD_BYTES
        shards[-1][name] = state[name]
        room -= size
    where: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        save_file(shard, folder / file, metadata={"format": "pt"})
        where |= dict.fromkeys(shard, file)
    index = {"metadata": {"total_size": 2 * weights.flat.numel()}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
