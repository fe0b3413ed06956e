"""How much a token stands out on its own screenshot: a score that no question has a part in."""

from __future__ import annotations

import torch

from star_kv_sglang.policies.base.grid import is_beside_peak, is_peak, ranks
from star_kv_sglang.policies.base.interface import Observation, PolicySettings


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
    distances, places = seen.frame_norms[:, span], seen.frame_offsets[:, span]
    if not settings.peaks:
        return ranks(distances)
    if settings.beside_peak == 0:
        return ranks(distances) + is_peak(distances, places, frame.rows, frame.cols)
    beside = is_beside_peak(distances, places, frame.rows, frame.cols)
    return ranks(torch.addcmul(distances, distances, beside, value=settings.beside_peak - 1))
