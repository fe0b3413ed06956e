"""How much a token stands out on its own screenshot: a score that no question has a part in."""

from __future__ import annotations

import torch

from star_kv_sglang.policies.base.grid import is_beside_peak, is_peak, places, ranks
from star_kv_sglang.policies.base.interface import Observation, PolicyScores, PolicySettings

PROMINENT = 2.0


def distinctness(seen: Observation, request: int, index: int, settings: PolicySettings) -> torch.Tensor:
    """Rank of each live token of a screenshot by its layer input's distance from the screenshot's mean.

    A peak has no higher neighbour on the screen. Tokens beside one mostly show the same thing again, so that their
    distance counts for less; how much less is the caller's choice.

    Args:
        seen: Of a policy with `Norms.CENTRED`.
        request: Index of the request.
        index: Of its screenshot, which has live tokens.
        settings: ``peaks`` says whether peaks matter, ``beside_peak`` how.

    Returns:
        float32 [L, V], 0 to 1 by rank; 1 more for a peak where ``beside_peak`` is 0.
    """
    span, frame = seen.frame(request, index), seen.layouts[request].frames[index]
    distances = seen.frame_norms[:, span]
    if not settings.peaks:
        return ranks(distances)
    if settings.beside_peak == 0:
        return ranks(distances) + is_peak(distances, seen.frame_offsets[:, span], frame.rows, frame.cols)
    beside = _beside_peak(seen, request, index)
    if (request, index) not in seen.remembered:
        seen.beside_peak[request, index] = beside
    return ranks(torch.addcmul(distances, distances, beside, value=settings.beside_peak - 1))


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


def by_place_in_line(seen: Observation, scored: PolicyScores) -> torch.Tensor:
    """Scores that compare over screenshots, in the order that ``scored`` gives each screenshot's tokens.

    Ranks say nothing of what one screenshot has that another has not, and distances say too much: one style of widgets
    would starve another. A token's place in its screenshot's order, counted in how many things the screenshot shows,
    gives one that shows twice as much twice as many tokens.

    Returns:
        float32 [L, N]: n / (n + place) with n of `num_prominent`, 1/2 for the token behind the n best; 0 for text and
        for screenshots whose scores are remembered.
    """
    lasting = torch.zeros_like(seen.frame_norms)
    for request, layout in enumerate(seen.layouts):
        for index, frame in enumerate(layout.frames):
            if frame.num_live and layout.window and (request, index) not in seen.remembered:
                span, shown = seen.frame(request, index), num_prominent(seen, request, index)
                lasting[:, span] = shown / (shown + places(scored.calibrated[:, span]))
    return lasting
