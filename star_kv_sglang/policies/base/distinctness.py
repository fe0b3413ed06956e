"""How much a token stands out on its own screenshot: a score that no question has a part in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from star_kv_sglang.policies.base.grid import is_peak
from star_kv_sglang.policies.base.interface import Observation
from star_kv_sglang.policies.base.params import DistinctnessParams

if TYPE_CHECKING:
    from star_kv_sglang.algorithm.params import ScorerParams
    from star_kv_sglang.triton_ops.dispatch import Ops

PROMINENT = 2.0
"""Distance of a token that shows a thing of its own, at least, over the usual one."""
SAME = 0.1
"""Largest difference between the distances of two tokens that count as showing the same thing, over the distance."""


@dataclass(frozen=True)
class Screenshot:
    """The live tokens of a screenshot, V of them, as distinctness looks at them.

    Attributes:
        distances: float32 [L, V], of each token's layer input to the screenshot's mean.
        offsets: integer [L, V], raster index of each token.
        rows: Of the screenshot's grid.
        cols: Likewise.
        ops: Kernels or references.
    """

    distances: torch.Tensor
    offsets: torch.Tensor
    rows: int
    cols: int
    ops: Ops

    @classmethod
    def of(cls, seen: Observation, request: int, index: int) -> Screenshot:
        """Look at a screenshot that has live tokens; the policy asks for `Norms.CENTRED`."""
        span, frame = seen.frame(request, index), seen.layouts[request].frames[index]
        return cls(seen.frame_norms[:, span], seen.frame_offsets[:, span], frame.rows, frame.cols, seen.ops)

    def ranked(self, params: DistinctnessParams, factor: torch.Tensor | None) -> Ranked:
        """Rank its tokens by their distances.

        A peak has no higher neighbour on the screen. Tokens beside one mostly show the same thing again, so that their
        distance counts for less.

        Args:
            params: How much less.
            factor: float32 [L, V], what else a distance is multiplied by; None for nothing.
        """
        # Where the peaks are is what the screenshot shows, whatever it is multiplied by.
        peaks_first = params.peaks and params.beside_peak == 0
        ranks, beside = self.ops.peak_ranks(
            self.distances,
            self.offsets,
            factor,
            rows=self.rows,
            cols=self.cols,
            beside_peak=params.beside_peak if params.peaks and not peaks_first else 1.0,
        )
        if peaks_first:
            ranks = ranks + is_peak(self.distances, self.offsets, self.rows, self.cols)
        return Ranked(self, ranks, beside)


@dataclass(frozen=True)
class Ranked:
    """A screenshot whose tokens are ranked by how far they stand out.

    Attributes:
        screenshot: It.
        ranks: float32 [L, V], 0 to 1 by rank; 1 more for a peak where ``beside_peak`` is 0.
        beside_peak: float32 [L, V], 1 for tokens beside a local maximum, 0 for others.
    """

    screenshot: Screenshot
    ranks: torch.Tensor
    beside_peak: torch.Tensor

    def place_scores(
        self,
        places: torch.Tensor,
        params: ScorerParams | None = None,
        before: torch.Tensor | None = None,
        fading: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Scores that compare over screenshots, by each token's place in the order of its own.

        Ranks say nothing of what one screenshot has that another has not, and distances say too much: one style of
        widgets would starve another. A token's place, counted in how many things the screenshot shows, gives one that
        shows twice as much twice as many tokens. What it shows are about as many things as tokens lie more than twice
        as far from the mean as the usual one; those beside a peak mostly show the same thing again.

        Args:
            places: float32 [L, V], 0 for the best.
            params: Of the entropy temperature; None: without it.
            before: float32 [L], the last temperature; None where there is none.
            fading: float32 [L, V], what later screenshots leave of its tokens; None for all.

        Returns:
            float32 [L, V]: n / (n + place) with n of the things that it shows, 1/2 for the token behind the n best;
            times ``fading``, and that to 1 over the temperature.
        """
        has_temperature = params is not None and params.temperature
        return self.screenshot.ops.place_scores(
            places,
            self.screenshot.distances,
            self.beside_peak,
            fading,
            before if has_temperature else None,
            prominent=PROMINENT,
            temperature_range=(params.temperature_min, params.temperature_max) if params and has_temperature else None,
            temperature_smoothing=params.temperature_smoothing if params else 0.0,
        )


def distinctness(seen: Observation, request: int, index: int, params: DistinctnessParams) -> Ranked:
    """A screenshot that has live tokens, ranked by how much each of them stands out.

    Args:
        seen: Of a policy with `Norms.CENTRED`.
        request: Index of the request.
        index: Of its screenshot.
        params: What counts how much.
    """
    copies = is_kept_before(seen, request, index) if params.kept_before < 1 else None
    factor = None if copies is None else 1.0 - (1.0 - params.kept_before) * copies
    return Screenshot.of(seen, request, index).ranked(params, factor)


def is_kept_before(seen: Observation, request: int, index: int) -> torch.Tensor | None:
    """Whether the screenshot before has kept a token at the same place that stands out about as far.

    What stays on the screen from turn to turn need not be kept every time: a question about a screenshot that has lost
    it is answered from the copy next to it. Only the screenshot directly before counts, so that no copy is further away
    than one turn, and a thing that stays for long is kept every other time.

    Args:
        seen: Of a policy with `Norms.CENTRED`.
        request: Index of the request.
        index: Of its screenshot, which has live tokens.

    Returns:
        float32 [L, V], 0 or 1; None where the screenshot before does not exist, is empty, has another grid, or has lost
        nothing, so that what will be left of it is not known.
    """
    if index == 0:
        return None
    before, frame = seen.layouts[request].frames[index - 1 : index + 1]
    same_grid = (before.rows, before.cols) == (frame.rows, frame.cols)
    if not same_grid or not 0 < before.num_live < before.rows * before.cols:
        return None
    earlier, span = seen.frame(request, index - 1), seen.frame(request, index)
    return seen.ops.kept_copies(
        seen.frame_norms[:, span],
        seen.frame_offsets[:, span],
        seen.frame_norms[:, earlier],
        seen.frame_offsets[:, earlier],
        num_places=frame.rows * frame.cols,
        tolerance=SAME,
    )
