"""What a policy remembers of every slot, layer by layer: its token's place in its screenshot, norm, score."""

from __future__ import annotations

from dataclasses import dataclass

import torch

TEXT = -1
"""Frame offset of a slot that holds no visual token."""


@dataclass(frozen=True)
class SidePools:
    """Slot-indexed records beside the KV pool. They are moved together with K and V.

    Attributes:
        frame_offsets: int16 [num_units, num_slots], raster index of the token inside its screenshot; :data:`TEXT`
            for text. A unit is what chooses for itself: a layer, or a key head of a layer.
        frame_norms: [num_layers, num_slots], L2 norm of the token's layer input (after the input norm), or what the
            policy's ``Norms`` say; infinite in all layers for a sink, where sinks are looked for.
        attention: float32 [num_layers, num_slots], attention that the token has received so far, mean over the heads;
            None where no policy asks for it.
        scores: float16 [num_units, num_slots], the token's calibrated score when it was last scored, so that it can be
            pruned again without a query; None where nothing is pruned twice.
        segment_ids: int32 [num_slots], number of the scored segment that the slot belongs to, 0 for none; belongs to
            the slot and does not move with the token. None where ``scores`` is.
    """

    frame_offsets: torch.Tensor
    frame_norms: torch.Tensor
    attention: torch.Tensor | None = None
    scores: torch.Tensor | None = None
    segment_ids: torch.Tensor | None = None

    @classmethod
    def allocate(
        cls,
        num_layers: int,
        num_slots: int,
        *,
        norm_dtype: torch.dtype,
        device: torch.device | str,
        units_per_layer: int = 1,
        with_attention: bool = False,
        with_scores: bool = False,
    ) -> SidePools:
        """Pools for slots 0 .. num_slots - 1."""
        shape, unit_shape = (num_layers, num_slots), (num_layers * units_per_layer, num_slots)
        return cls(
            torch.full(unit_shape, TEXT, dtype=torch.int16, device=device),
            torch.zeros(shape, dtype=norm_dtype, device=device),
            torch.zeros(shape, dtype=torch.float32, device=device) if with_attention else None,
            torch.zeros(unit_shape, dtype=torch.float16, device=device) if with_scores else None,
            torch.zeros(num_slots, dtype=torch.int32, device=device) if with_scores else None,
        )

    @staticmethod
    def bytes_per_slot(
        num_layers: int,
        *,
        norm_dtype: torch.dtype,
        units_per_layer: int = 1,
        with_attention: bool = False,
        with_scores: bool = False,
    ) -> int:
        """What `allocate` takes for each slot, before it is allocated."""
        per_unit = torch.int16.itemsize + (torch.float16.itemsize if with_scores else 0)
        per_layer = norm_dtype.itemsize + (torch.float32.itemsize if with_attention else 0)
        per_slot = torch.int32.itemsize if with_scores else 0
        return num_layers * (units_per_layer * per_unit + per_layer) + per_slot

    @property
    def num_bytes(self) -> int:
        """Memory of the pools in bytes."""
        pools = (self.frame_offsets, self.frame_norms, self.attention, self.scores, self.segment_ids)
        return sum(pool.numel() * pool.element_size() for pool in pools if pool is not None)
