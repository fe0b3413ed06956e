"""Attention masks of a transformers model, in which what each layer no longer had is hidden from later queries."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from star_kv_sglang.errors import StarKVError
from star_kv_sglang.kept_format import KeptRecord

if TYPE_CHECKING:
    from torch import nn

TAKES_MASKS = ("eager", "sdpa")
"""Implementations of attention that take a mask of their own for each head and query."""


class MaskError(StarKVError, ValueError):
    """A model, or a batch, that a record does not fit."""


def visible(record: KeptRecord, layer: int, length: int, *, device: torch.device | str = "cpu") -> torch.Tensor:
    """Which keys each query sees in a layer: bool [units, length, length], row by row, causal.

    Args:
        record: What was kept.
        layer: Index of the layer.
        length: Tokens of the sequence; those behind the record's see what its last token does.
        device: Where to make it.
    """
    sees = torch.ones(record.units_per_layer, length, length, dtype=torch.bool, device=device).tril_()
    for prune in record.prunes:
        kept = torch.from_numpy(prune.kept[layer]).to(device)
        sees[:, prune.after :, prune.start : prune.end] &= kept[:, None]
    return sees


def attention_modules(model: nn.Module) -> list[Any]:
    """The attention modules of the language model, in order; those of a vision tower have no index.

    Works through wrappers, as those of PEFT and FSDP are: modules are found, not named.

    Raises:
        MaskError: There are none, or their attention takes no masks.
    """
    found = [module for module in model.modules() if hasattr(module, "layer_idx") and hasattr(module, "q_proj")]
    found.sort(key=lambda module: int(module.layer_idx))  # type: ignore[arg-type]
    if not found or [module.layer_idx for module in found] != list(range(len(found))):
        raise MaskError(f"{type(model).__name__} has no attention modules with a layer_idx each: masks have no place")
    chosen = getattr(getattr(found[0], "config", None), "_attn_implementation", None)
    if chosen not in TAKES_MASKS:
        raise MaskError(
            f"attention {chosen!r} takes no masks; load the model with attn_implementation={TAKES_MASKS[1]!r}"
        )
    return found


@contextmanager
def masked_attention(
    model: nn.Module, records: Sequence[KeptRecord | None], attention_mask: torch.Tensor | None = None
) -> Iterator[None]:
    """In the block, each sequence of a batch attends to what the engine's did.

    A layer's mask is made when the layer runs and is dropped behind it. With gradient checkpointing layers run again in
    the backward pass, which then belongs into the block too.

    Args:
        model: A transformers model, with eager or SDPA attention.
        records: Of each sequence of the batch; None where nothing was pruned.
        attention_mask: [B, T], 0 where a sequence is padded, on either side; None where none is.

    Raises:
        MaskError: The model, or the batch, does not fit the records.
    """
    modules = attention_modules(model)
    for record in records:
        if record is not None and record.num_layers != len(modules):
            raise MaskError(f"the record is of {record.num_layers} layers, and the model has {len(modules)}")
    hooks = [
        module.register_forward_pre_hook(_use_masks(layer, records, attention_mask), with_kwargs=True)
        for layer, module in enumerate(modules)
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _use_masks(layer: int, records: Sequence[KeptRecord | None], attention_mask: torch.Tensor | None) -> Any:
    def replace_mask(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        hidden = args[0] if args else kwargs["hidden_states"]
        if kwargs.get("past_key_values") is not None:
            raise MaskError("masks are for one forward over whole sequences: pass use_cache=False")
        mask = _batch_mask(module, layer, records, hidden, attention_mask)
        return args, {**kwargs, "attention_mask": mask}

    return replace_mask


def _batch_mask(
    module: Any,
    layer: int,
    records: Sequence[KeptRecord | None],
    hidden: torch.Tensor,
    attention_mask: torch.Tensor | None,
) -> torch.Tensor:
    """Additive mask of a batch, [B, 1 or H, T, T], in the dtype of the layer's input."""
    batch, length = hidden.shape[:2]
    if batch != len(records):
        raise MaskError(f"a batch of {batch} sequences has {len(records)} records")
    num_heads = int(module.config.num_attention_heads)
    per_head = any(record is not None and record.units_per_layer > 1 for record in records)
    sees = torch.zeros(batch, num_heads if per_head else 1, length, length, dtype=torch.bool, device=hidden.device)
    for row, record in enumerate(records):
        first, last = _bounds(attention_mask, row, length)
        causal = torch.ones(1, last - first, last - first, dtype=torch.bool, device=hidden.device).tril_()
        if record is not None and last - first < record.length - 1:
            raise MaskError(f"a sequence of {last - first} tokens has a record of {record.length}")
        units = causal if record is None else visible(record, layer, last - first, device=hidden.device)
        heads = units.repeat_interleave(sees.shape[1] // len(units), dim=0)
        sees[row, :, first:last, first:last] = heads
    additive = torch.zeros(sees.shape, dtype=hidden.dtype, device=hidden.device)
    return additive.masked_fill_(~sees, torch.finfo(hidden.dtype).min)


def _bounds(attention_mask: torch.Tensor | None, row: int, length: int) -> tuple[int, int]:
    """Where a sequence of a padded batch begins and ends."""
    if attention_mask is None:
        return 0, length
    inside = attention_mask[row].nonzero()[:, 0]
    if not len(inside):
        raise MaskError(f"sequence {row} of the batch is padding only")
    return int(inside[0]), int(inside[-1]) + 1
