"""How much a token stands out on its own screenshot: a score that no question has a part in."""

from __future__ import annotations

import torch

from star_kv_sglang.policies.base.grid import is_peak, ranks
from star_kv_sglang.policies.base.interface import Observation


def distinctness(seen: Observation, request: int, index: int, *, peaks: bool) -> torch.Tensor:
    """Rank of each live token of a screenshot by its layer input's distance from the screenshot's mean.

    Args:
        seen: Of a policy with `Norms.CENTRED`.
        request: Index of the request.
        index: Of its screenshot, which has live tokens.
        peaks: Tokens without a higher neighbour on the screen come before all others, so that the budget goes to
            different places and not several times to one.

    Returns:
        float32 [L, V], 0 to 1 by rank, and 1 more for a peak.
    """
    span, frame = seen.frame(request, index), seen.layouts[request].frames[index]
    distances, places = seen.frame_norms[:, span], seen.frame_offsets[:, span]
    by_rank = ranks(distances)
    return by_rank + is_peak(distances, places, frame.rows, frame.cols) if peaks else by_rank
