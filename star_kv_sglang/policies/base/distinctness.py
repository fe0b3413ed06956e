"""How much a token stands out on its own screenshot: a score that no question has a part in."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch

from star_kv_sglang.policies.base.grid import at_places, is_beside_peak, is_peak, ranks
from star_kv_sglang.policies.base.interface import Observation
from star_kv_sglang.policies.base.params import DistinctnessParams

PROMINENT = 2.0
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
    """

    distances: torch.Tensor
    offsets: torch.Tensor
    rows: int
    cols: int

    @classmethod
    def of(cls, seen: Observation, request: int, index: int) -> Screenshot:
        """Look at a screenshot that has live tokens; the policy asks for `Norms.CENTRED`."""
        span, frame = seen.frame(request, index), seen.layouts[request].frames[index]
        return cls(seen.frame_norms[:, span], seen.frame_offsets[:, span], frame.rows, frame.cols)

    @cached_property
    def beside_peak(self) -> torch.Tensor:
        """Which tokens lie beside a local maximum, float32 [L, V], 0 or 1; found once, whoever asks."""
        return is_beside_peak(self.distances, self.offsets, self.rows, self.cols)

    def ranks(self, params: DistinctnessParams, factor: torch.Tensor | None) -> torch.Tensor:
        """Rank of each token by its distance.

        A peak has no higher neighbour on the screen. Tokens beside one mostly show the same thing again, so that their
        distance counts for less.

        Args:
            params: How much less.
            factor: float32 [L, V], what else a distance is multiplied by; None for nothing.

        Returns:
            float32 [L, V], 0 to 1 by rank; 1 more for a peak where ``beside_peak`` is 0.
        """
        counted = self.distances if factor is None else self.distances * factor
        if not params.peaks:
            return ranks(counted)
        # Where the peaks are is what the screenshot shows, whatever it is multiplied by.
        if params.beside_peak == 0:
            return ranks(counted) + is_peak(self.distances, self.offsets, self.rows, self.cols)
        return ranks(torch.addcmul(counted, counted, self.beside_peak, value=params.beside_peak - 1))

    def num_prominent(self) -> torch.Tensor:
        """About how many things the screenshot shows: tokens that lie more than twice as far from the mean as the usual
        one. Those beside a peak are left out, because they mostly show the same thing again.

        Returns:
            float32 [L, 1], at least 1.
        """
        usual = self.distances.median(dim=1, keepdim=True).values
        prominent = (self.distances > PROMINENT * usual) & (self.beside_peak == 0)
        return prominent.sum(dim=1, keepdim=True).clamp(min=1).float()

    def place_scores(self, places: torch.Tensor) -> torch.Tensor:
        """Scores that compare over screenshots, by each token's place in the order of its own.

        Ranks say nothing of what one screenshot has that another has not, and distances say too much: one style of
        widgets would starve another. A token's place, counted in how many things the screenshot shows, gives one that
        shows twice as much twice as many tokens.

        Args:
            places: float32 [L, V], 0 for the best.

        Returns:
            float32 [L, V]: n / (n + place) with n of `num_prominent`, 1/2 for the token behind the n best.
        """
        shown = self.num_prominent()
        return shown / (shown + places)


def distinctness(
    seen: Observation, request: int, index: int, params: DistinctnessParams
) -> tuple[Screenshot, torch.Tensor]:
    """A screenshot that has live tokens, and the rank of each of them by how much it stands out.

    Args:
        seen: Of a policy with `Norms.CENTRED`.
        request: Index of the request.
        index: Of its screenshot.
        params: What counts how much.

    Returns:
        The screenshot, and its `Screenshot.ranks`.
    """
    screenshot = Screenshot.of(seen, request, index)
    copies = is_kept_before(seen, request, index) if params.kept_before < 1 else None
    return screenshot, screenshot.ranks(params, None if copies is None else 1.0 - (1.0 - params.kept_before) * copies)


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
    distances = seen.frame_norms[:, span]
    copies = at_places(
        seen.frame_norms[:, earlier],
        seen.frame_offsets[:, earlier],
        seen.frame_offsets[:, span],
        frame.rows,
        frame.cols,
    )
    return ((copies - distances).abs() <= SAME * distances).to(distances.dtype)
