"""Sinks: a few background tokens whose activations are massive. Found while the model runs, and set apart from scores.

On large models they rank first by any distance and would move every centre, and other tokens depend on them. What they
are is told by the layer's input before its norm, which hides how large it was.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from star_kv_sglang.policies.base.interface import Observation, PolicyScores

if TYPE_CHECKING:
    from star_kv_sglang.triton_ops.dispatch import Ops

MOST_SINKS = 4
"""Of each screenshot; of each part of it, where a chunk boundary cuts it."""

NUM_PROBES = 3
"""About so many layers are looked at, from the second on. A sink's activation comes early and stays from layer to
layer; what is large before the first is what the vision tower has made large, such as widgets on a plain background."""

WORTH = 1e4
"""Score of a sink that stays, above every policy's, and finite in float16."""


class SinkWatch:
    """Finds the sinks of the screenshots that one forward computes.

    Args:
        ratio: A sink's norm is more than this many times the median of its screenshot, in a layer that is looked at.
        num_layers: Layers of the model.
        ops: Kernels or references.
    """

    def __init__(self, ratio: float, num_layers: int, ops: Ops) -> None:
        self.ratio = ratio
        self._every = max(1, num_layers // NUM_PROBES)
        self._ops = ops
        self._indptr: torch.Tensor | None = None
        self._sizes: Sequence[int] = ()
        self._excess: torch.Tensor | None = None
        self._rows: torch.Tensor | None = None

    def begin(self, sizes: Sequence[int], indptr: torch.Tensor) -> None:
        """A forward begins.

        Args:
            sizes: Tokens of each screenshot that it computes.
            indptr: int32 [F + 1], their bounds.
        """
        self._sizes, self._indptr = sizes, indptr
        self._excess = torch.zeros(sum(sizes), dtype=torch.float32, device=indptr.device)
        self._rows = torch.arange(sum(sizes), device=indptr.device)

    def looks_at(self, layer: int) -> bool:
        """Whether a layer is looked at in this forward."""
        return self._excess is not None and layer > 0 and (layer - 1) % self._every == 0

    def observe(self, inputs: torch.Tensor) -> None:
        """A layer that is looked at begins.

        Args:
            inputs: [n, C], the visual tokens' inputs before the input norm.
        """
        if self._excess is None or self._indptr is None or self._rows is None:
            return
        norms = torch.empty_like(self._excess)
        self._ops.frame_norms(inputs, self._rows, norms)
        self._ops.norm_excess(norms, self._indptr, self._excess, max_rows=max(self._sizes))

    @property
    def excess(self) -> torch.Tensor | None:
        """float32 [n], each token's largest ratio so far; None outside of a forward with screenshots."""
        return self._excess

    def end(self, slots: torch.Tensor, frame_norms: torch.Tensor) -> None:
        """The forward is queued: give its sinks an infinite norm in every layer, which moves with them.

        Args:
            slots: int64 [n].
            frame_norms: [L, num_slots], written to.
        """
        excess, self._excess = self._excess, None
        if excess is None or self._indptr is None or not self._sizes:
            return
        self._ops.mark_sinks(
            excess, self._indptr, slots, frame_norms, ratio=self.ratio, most=MOST_SINKS, max_rows=max(self._sizes)
        )


def set_apart(scored: PolicyScores, seen: Observation, *, keeps: bool) -> PolicyScores:
    """Give sinks scores that no policy gives: they stay before all others and beside the budget, or go before all.

    Args:
        scored: Of all tokens.
        seen: What was scored.
        keeps: Sinks stay.
    """
    if seen.sinks is None:
        return scored
    # Whichever slot holds it in a layer, a segment has as many sinks in each.
    sinks, again = seen.sinks, scored.for_pruning_again
    return replace(
        scored,
        # A number, not a tensor: to bring one to the GPU would wait for all that is queued there.
        calibrated=torch.where(sinks, WORTH if keeps else -WORTH, scored.calibrated),
        # They do not compete: what others get does not depend on them.
        layer_mean=scored.layer_mean.masked_fill(sinks.any(dim=0), -1.0),
        for_pruning_again=None if again is None else torch.where(sinks, WORTH if keeps else 0.0, again),
        apart=sinks[0] if keeps else None,
    )
