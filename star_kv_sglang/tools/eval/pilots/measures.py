"""Information about position, entropy, and distances between the score distributions of two screenshots."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from star_kv_sglang.tools.eval.pilots.capture import SeenTurn
from star_kv_sglang.triton_ops.dispatch import get_ops


@dataclass(frozen=True)
class Drift:
    """How the scores of a key head changed from one screenshot to a later one, mean over all layers and heads.

    Attributes:
        lag: screenshots between the two.
        values: Wasserstein distance (order 1) of the two distributions of score values, each scaled to mean 1.
        place: the same of the two distributions over the screen, along rows plus along columns, as shares of its sides.
        rank: Spearman's rank correlation of the scores, place by place.
    """

    lag: int
    values: float
    place: float
    rank: float


def spatial_information(turn: SeenTurn) -> torch.Tensor:
    """Mutual information of each key head's scores and the place on the screen, nats, float32 [L, G]."""
    num_layers, _, num_visual = turn.scores.shape
    offsets = torch.arange(num_visual, dtype=torch.int32).expand(num_layers, -1)
    found: torch.Tensor = get_ops("reference").spatial_mi(
        turn.scores,
        offsets,
        torch.tensor([[0, num_visual]], dtype=torch.int32),
        torch.tensor([[turn.rows, turn.cols]], dtype=torch.int32),
        max_span=num_visual,
    )
    return found[:, 0]


def chance_information(turn: SeenTurn, seed: int = 0) -> torch.Tensor:
    """The same with the scores dealt out over the screen at random: what the estimate says where there is nothing.

    A plug-in estimate is far above 0 where a screenshot has few tokens for each place; with one token each it is the
    entropy of the score bins, whatever the scores.
    """
    order = torch.randperm(turn.scores.shape[2], generator=torch.Generator().manual_seed(seed))
    return spatial_information(SeenTurn(turn.scores[:, :, order], turn.rows, turn.cols))


def shares(turn: SeenTurn) -> torch.Tensor:
    """Scores as distributions over the screenshot, float64 [L, G, V]; uniform where all are 0."""
    scores = turn.scores.double().clamp(min=0)
    total = scores.sum(dim=-1, keepdim=True)
    return torch.where(total > 0, scores / total, 1 / scores.shape[-1])


def entropy(turn: SeenTurn) -> torch.Tensor:
    """Normalised entropy of each key head's distribution, 0 to 1, float64 [L, G]."""
    share = shares(turn)
    logs = torch.where(share > 0, share.log(), 0.0)
    return -(share * logs).sum(dim=-1) / torch.log(torch.tensor(float(share.shape[-1])))


def drift(turns: Sequence[SeenTurn], lag: int) -> Drift | None:
    """Mean drift over all pairs of screenshots of the same grid that lie ``lag`` apart; None when there are none."""
    pairs = [
        (one, other)
        for one, other in zip(turns, turns[lag:], strict=False)
        if (one.rows, one.cols) == (other.rows, other.cols)
    ]
    if not pairs:
        return None
    values = [value_distance(shares(a), shares(b)).mean() for a, b in pairs]
    place = [place_distance(shares(a), shares(b), a.rows, a.cols).mean() for a, b in pairs]
    rank = [rank_correlation(a.scores, b.scores).mean() for a, b in pairs]
    return Drift(lag, *(float(torch.stack(one).mean()) for one in (values, place, rank)))


def value_distance(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Wasserstein distance of the values of two distributions over V places, scaled to mean 1; [..., V] to [...]."""
    scaled = [(share * share.shape[-1]).sort(dim=-1).values for share in (one, other)]
    return (scaled[0] - scaled[1]).abs().mean(dim=-1)


def place_distance(one: torch.Tensor, other: torch.Tensor, rows: int, cols: int) -> torch.Tensor:
    """Wasserstein distance along rows plus along columns, each side of the screen being 1 long; [..., V] to [...]."""
    difference = (one - other).unflatten(-1, (rows, cols))
    along_rows = difference.sum(dim=-1).cumsum(dim=-1).abs().sum(dim=-1) / rows
    along_cols = difference.sum(dim=-2).cumsum(dim=-1).abs().sum(dim=-1) / cols
    total: torch.Tensor = along_rows + along_cols
    return total


def rank_correlation(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Spearman's, over the last dimension; of equal scores the earlier ranks first; float64 [...]."""
    ranks = [scores.argsort(dim=-1, stable=True).argsort(dim=-1).double() for scores in (one, other)]
    centred = [rank - rank.mean(dim=-1, keepdim=True) for rank in ranks]
    product = (centred[0] * centred[1]).sum(dim=-1)
    sizes = (centred[0].square().sum(dim=-1) * centred[1].square().sum(dim=-1)).sqrt()
    correlation: torch.Tensor = product / sizes
    return correlation
