"""Screenshots as grids: tokens of every unit put back to their places."""

from __future__ import annotations

import torch

from star_kv_sglang.triton_ops.peak_ranks.reference import highest_near, laid_out


def ranks(scores: torch.Tensor) -> torch.Tensor:
    """Rank of each of V tokens, 0 for the lowest to 1 for the highest; of equal ones the later is lower. [U, V]."""
    last = scores.shape[1] - 1
    return _in_order(scores, range(last, -1, -1)) / max(last, 1)


def places(scores: torch.Tensor) -> torch.Tensor:
    """How many of V tokens come before each one, 0 for the highest; of equal ones the later is behind. [U, V]."""
    return _in_order(scores, range(scores.shape[1]))


def places_of_ranks(ranked: torch.Tensor) -> torch.Tensor:
    """`places` of tokens by their `ranks`, which say it already. [U, V]."""
    return ((1 - ranked) * (ranked.shape[1] - 1)).round()


def _in_order(scores: torch.Tensor, numbers: range) -> torch.Tensor:
    """The first number for the highest token, and so on, in the scores' dtype."""
    order = scores.argsort(dim=1, descending=True, stable=True)
    values = torch.arange(numbers.start, numbers.stop, numbers.step, device=scores.device, dtype=scores.dtype)
    return torch.empty_like(scores).scatter_(1, order, values.expand_as(scores))


def merged_ranks(first: torch.Tensor, second: torch.Tensor, share: float) -> torch.Tensor:
    """Ranks of a list that is filled from the tops of two rankings.

    Of any number of tokens that are taken from the top, ``share`` were next by the first score and the rest by the
    second; a token that both name counts once, and both lists go on behind it.

    Args:
        first: float32 [U, V], the higher, the sooner.
        second: Likewise.
        share: 0 to 1; at 0 and 1 the other score has no say.

    Returns:
        float32 [U, V], 0 to 1 as `ranks`.
    """
    if share <= 0:
        return ranks(second)
    if share >= 1:
        return ranks(first)
    turn_of_first, turn_of_second = places(first) + 1, places(second) + 1
    return ranks(-torch.minimum(turn_of_first / share, turn_of_second / (1 - share)))


def is_peak(scores: torch.Tensor, offsets: torch.Tensor, rows: int, cols: int) -> torch.Tensor:
    """Whether none of a token's up to eight live neighbours on the screen is higher.

    Args:
        scores: float32 [U, V], of a screenshot's live tokens.
        offsets: integer [U, V], their places, ``row * cols + col``; each unit may hold others.
        rows: Of the screenshot's grid.
        cols: Likewise.

    Returns:
        bool [U, V].
    """
    offsets = offsets.long()
    board = laid_out(scores, offsets, rows, cols)
    return scores >= highest_near(board).flatten(1).gather(1, offsets)
