"""How much a token stands out on its own screenshot: a score that no question has a part in."""

from __future__ import annotations

import torch

from star_kv_sglang.policies.base.grid import at_places, is_beside_peak, is_peak, places, places_of_ranks, ranks
from star_kv_sglang.policies.base.interface import Observation, PolicyScores
from star_kv_sglang.policies.base.settings import PolicySettings

PROMINENT = 2.0
SAME = 0.1
"""Largest difference between the distances of two tokens that count as showing the same thing, over the distance."""


def distinctness(seen: Observation, request: int, index: int, settings: PolicySettings) -> torch.Tensor:
    """Rank of each live token of a screenshot by its layer input's distance from the screenshot's mean.

    A peak has no higher neighbour on the screen. Tokens beside one mostly show the same thing again, so that their
    distance counts for less, and so does that of tokens of which the screenshot before has kept a copy; how much less
    is the caller's choice.

    Args:
        seen: Of a policy with `Norms.CENTRED`.
        request: Index of the request.
        index: Of its screenshot, which has live tokens.
        settings: ``peaks`` says whether peaks matter, ``beside_peak`` how, ``kept_before`` whether copies do.

    Returns:
        float32 [L, V], 0 to 1 by rank; 1 more for a peak where ``beside_peak`` is 0.
    """
    span, frame = seen.frame(request, index), seen.layouts[request].frames[index]
    distances = seen.frame_norms[:, span]
    counted = distances
    copies = is_kept_before(seen, request, index) if settings.kept_before < 1 else None
    if copies is not None:
        counted = torch.addcmul(counted, counted, copies, value=settings.kept_before - 1)
    if not settings.peaks:
        return ranks(counted)
    # Where the peaks are is what the screenshot shows, whatever was kept before.
    if settings.beside_peak == 0:
        return ranks(counted) + is_peak(distances, seen.frame_offsets[:, span], frame.rows, frame.cols)
    beside = _beside_peak(seen, request, index)
    if (request, index) not in seen.remembered:
        seen.beside_peak[request, index] = beside
    return ranks(torch.addcmul(counted, counted, beside, value=settings.beside_peak - 1))


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


def distinctness_rank(seen: Observation, request: int, index: int, settings: PolicySettings) -> torch.Tensor:
    """`distinctness` as a rank, 0 to 1, also where peaks come first; arguments as there."""
    scores = distinctness(seen, request, index, settings)
    return ranks(scores) if settings.peaks and settings.beside_peak == 0 else scores


def num_prominent(seen: Observation, request: int, index: int) -> torch.Tensor:
    """About how many things a screenshot shows: tokens that lie more than twice as far from the mean as the usual one.
    Those beside a peak are left out, because they mostly show the same thing again.

    Args:
        seen: Of a policy with `Norms.CENTRED`.
        request: Index of the request.
        index: Of its screenshot, which has live tokens.

    Returns:
        float32 [L, 1], at least 1.
    """
    distances = seen.frame_norms[:, seen.frame(request, index)]
    usual = distances.median(dim=1, keepdim=True).values
    beside = seen.beside_peak.pop((request, index), None)  # scoring has looked at it already, mostly
    if beside is None:
        beside = _beside_peak(seen, request, index)
    return ((distances > PROMINENT * usual) & (beside == 0)).sum(dim=1, keepdim=True).clamp(min=1).float()


def _beside_peak(seen: Observation, request: int, index: int) -> torch.Tensor:
    span, frame = seen.frame(request, index), seen.layouts[request].frames[index]
    return is_beside_peak(seen.frame_norms[:, span], seen.frame_offsets[:, span], frame.rows, frame.cols)


def by_place_in_line(seen: Observation, scored: PolicyScores, *, ranked: bool) -> torch.Tensor:
    """Scores that compare over screenshots, in the order that ``scored`` gives each screenshot's tokens.

    Ranks say nothing of what one screenshot has that another has not, and distances say too much: one style of widgets
    would starve another. A token's place in its screenshot's order, counted in how many things the screenshot shows,
    gives one that shows twice as much twice as many tokens.

    Args:
        seen: Of a policy with `Norms.CENTRED`.
        scored: What it made of them.
        ranked: Each screenshot's scores are `ranks`, so that nothing has to be sorted again.

    Returns:
        float32 [L, N]: n / (n + place) with n of `num_prominent`, 1/2 for the token behind the n best; 0 for text and
        for screenshots whose scores are remembered.
    """
    lasting = torch.zeros_like(seen.frame_norms)
    count = places_of_ranks if ranked else places
    for request, layout in enumerate(seen.layouts):
        for index, frame in enumerate(layout.frames):
            if frame.num_live and layout.window and (request, index) not in seen.remembered:
                span, shown = seen.frame(request, index), num_prominent(seen, request, index)
                lasting[:, span] = shown / (shown + count(scored.calibrated[:, span]))
    return lasting
