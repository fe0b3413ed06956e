"""Scores of one screen's tokens inside one layer: what may be known when the screen is pruned, and what not to ask.

All take a `FrameView` and return float32 [B, V]; the higher, the sooner kept. B cases, V visual tokens, G key heads.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch.nn import functional as F

WINDOW = 8
POOL = 5


@dataclass(frozen=True)
class FrameView:
    """One screen in one layer, at the end of the prompt that showed it.

    Attributes:
        hidden: Layer input after the input norm, [B, V, C].
        key, value: [B, G, V, D], rotary applied to the key.
        query: Queries from the screen's first token to the prompt's last, [B, H, Q, D].
        all_keys: [B, G, P, D], every key up to the prompt's last.
        sees: bool [B, Q, P], what these queries see.
        start: Position of the screen's first token.
        grid: Rows and columns.
        previous: The same layer's view of the screen before, or None.
        previous_kept: Which tokens of the screen before stayed, bool [B, V], or None.
        generator: For random numbers.
    """

    hidden: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    query: torch.Tensor
    all_keys: torch.Tensor
    sees: torch.Tensor
    start: int
    grid: tuple[int, int]
    previous: FrameView | None
    previous_kept: torch.Tensor | None
    generator: torch.Generator

    def attention(self, first: int) -> torch.Tensor:
        """Attention of the queries from ``first`` on (negative: from the end) to the screen, summed, [B, H, V]."""
        query = self.query[:, :, first:]
        keys = self.all_keys.repeat_interleave(query.shape[1] // self.all_keys.shape[1], dim=1)
        logits = query @ keys.transpose(2, 3) * query.shape[-1] ** -0.5
        weights = logits.masked_fill(~self.sees[:, None, first:], -torch.inf).softmax(-1)
        return weights[..., self.start : self.start + self.hidden.shape[1]].sum(2)

    @cached_property
    def window(self) -> torch.Tensor:
        """Pooled attention of the prompt's last queries, mean over the heads, [B, V]."""
        return F.avg_pool1d(self.attention(-WINDOW), POOL, 1, POOL // 2).mean(1)


Score = Callable[[FrameView], torch.Tensor]


def random(view: FrameView) -> torch.Tensor:
    """Uniform."""
    return torch.rand(view.hidden.shape[:2], generator=view.generator).to(view.hidden.device)


def window(view: FrameView) -> torch.Tensor:
    """What the prompt's last eight queries attend to."""
    return view.window


def h2o(view: FrameView) -> torch.Tensor:
    """What all queries since the screen attend to."""
    return view.attention(0).mean(1)


def grid_mean(x: torch.Tensor, grid: tuple[int, int], radius: int = 1) -> torch.Tensor:
    """Mean over each token's neighbourhood on the grid, itself included, [B, V, C]."""
    rows, cols = grid
    maps = x.transpose(1, 2).unflatten(2, (rows, cols))
    return F.avg_pool2d(maps, 2 * radius + 1, 1, radius, count_include_pad=False).flatten(2).transpose(1, 2)


def away_from_neighbours(x: torch.Tensor, grid: tuple[int, int], radius: int = 1) -> torch.Tensor:
    """1 - cosine between each token and the mean of its neighbourhood, [B, V]."""
    return 1 - F.cosine_similarity(x, grid_mean(x, grid, radius), dim=-1)


def away_from_mean(x: torch.Tensor) -> torch.Tensor:
    """1 - cosine between each token and the mean direction of the screen's tokens, [..., V]."""
    return 1 - F.cosine_similarity(x, F.normalize(x, dim=-1).mean(-2, keepdim=True), dim=-1)


def from_mean(x: torch.Tensor) -> torch.Tensor:
    """Euclidean distance to the mean of the screen's tokens, [..., V]."""
    return (x - x.mean(-2, keepdim=True)).norm(dim=-1)


def flat(heads: torch.Tensor) -> torch.Tensor:
    """All heads of a token side by side, [B, V, G * D]."""
    return heads.transpose(1, 2).flatten(2)


def rank(score: torch.Tensor) -> torch.Tensor:
    """Rank of each token on its screen, 0 for the lowest to 1 for the highest."""
    return score.argsort(-1).argsort(-1).float() / (score.shape[-1] - 1)


def standard(score: torch.Tensor) -> torch.Tensor:
    """Standardised over the last dimension."""
    return (score - score.mean(-1, keepdim=True)) / (score.std(-1, keepdim=True) + 1e-8)


def peaks(score: torch.Tensor, grid: tuple[int, int], radius: int = 1) -> torch.Tensor:
    """Ranks, with tokens that have no higher neighbour on the grid before all others."""
    maps = score.unflatten(1, grid)[:, None]
    highest = F.max_pool2d(maps, 2 * radius + 1, 1, radius).flatten(1)
    return rank(score) + (score >= highest).float()


def beside_peaks(score: torch.Tensor, grid: tuple[int, int], share: float) -> torch.Tensor:
    """Scores, of which tokens beside a local maximum keep a ``share``."""
    maps = score.unflatten(1, grid)[:, None]
    highest = (maps >= F.max_pool2d(maps, 3, 1, 1)).float()
    beside = F.max_pool2d(highest, 3, 1, 1) - highest
    return (maps * (1 - (1 - share) * beside)).flatten(1)


def suppress(score: torch.Tensor, grid: tuple[int, int], amount: float) -> torch.Tensor:
    """Ranks, less ``amount`` for every neighbour on the grid that is higher."""
    rows, cols = grid
    padded = F.pad(score.unflatten(1, grid), (1, 1, 1, 1), value=-torch.inf)
    higher = torch.zeros_like(score)
    for dy in range(3):
        for dx in range(3):
            if (dy, dx) != (1, 1):
                higher += (padded[:, dy : dy + rows, dx : dx + cols].flatten(1) > score).float()
    return rank(score) - amount * higher


def value_norm(view: FrameView) -> torch.Tensor:
    """L2 norm of the value, over all heads together."""
    return flat(view.value).norm(dim=-1)


def value_from_mean(view: FrameView) -> torch.Tensor:
    """Distance of the value to the screen's mean value."""
    return from_mean(flat(view.value))


def value_away(view: FrameView) -> torch.Tensor:
    """Dissimilarity of the value's direction to the screen's mean direction."""
    return away_from_mean(flat(view.value))


def value_head_max(view: FrameView) -> torch.Tensor:
    """Largest standardised value norm among the heads."""
    return standard(view.value.norm(dim=-1)).amax(1)


def key_mean(view: FrameView) -> torch.Tensor:
    """Dissimilarity of the rotated key to the screen's mean key, mean over the heads (KeyDiff)."""
    return away_from_mean(view.key).mean(1)


def key_neighbours(view: FrameView) -> torch.Tensor:
    """Dissimilarity of the rotated key to the mean of its 3 x 3 neighbourhood."""
    return away_from_neighbours(flat(view.key), view.grid)


def value_neighbours(view: FrameView) -> torch.Tensor:
    """Dissimilarity of the value to the mean of its 3 x 3 neighbourhood."""
    return away_from_neighbours(flat(view.value), view.grid)


def value_neighbour_distance(view: FrameView) -> torch.Tensor:
    """Distance of the value to the mean of its 3 x 3 neighbourhood."""
    x = flat(view.value)
    return (x - grid_mean(x, view.grid)).norm(dim=-1)


def hidden_mean(view: FrameView) -> torch.Tensor:
    """Dissimilarity of the layer input to the screen's mean direction."""
    return away_from_mean(view.hidden)


def hidden_distance(view: FrameView) -> torch.Tensor:
    """Distance of the layer input to the screen's mean."""
    return from_mean(view.hidden)


def hidden_norm(view: FrameView) -> torch.Tensor:
    """L2 norm of the layer input, after the input norm."""
    return view.hidden.norm(dim=-1)


def hidden_neighbours(view: FrameView) -> torch.Tensor:
    """Dissimilarity of the layer input to the mean of its 3 x 3 neighbourhood."""
    return away_from_neighbours(view.hidden, view.grid)


def hidden_neighbour_distance(view: FrameView) -> torch.Tensor:
    """Distance of the layer input to the mean of its 3 x 3 neighbourhood."""
    return (view.hidden - grid_mean(view.hidden, view.grid)).norm(dim=-1)


def changed(view: FrameView) -> torch.Tensor:
    """Difference of the value from the same place on the screen before."""
    if view.previous is None:
        return value_norm(view)
    return (flat(view.value) - flat(view.previous.value)).norm(dim=-1)


def peaked(score: Score, radius: int = 1) -> Score:
    """A score whose local maxima come first."""
    return lambda view: peaks(score(view), view.grid, radius)


def lowered(score: Score, share: float) -> Score:
    """A score of which tokens beside a local maximum keep a ``share``."""
    return lambda view: beside_peaks(score(view), view.grid, share)


def kept_before(view: FrameView, tolerance: float = 0.1) -> torch.Tensor:
    """Which tokens the screen before has kept at the same place, about as far from its mean, bool [B, V]."""
    distances = hidden_distance(view)
    if view.previous is None or view.previous_kept is None:
        return torch.zeros_like(distances, dtype=torch.bool)
    difference = (hidden_distance(view.previous) - distances).abs()
    return view.previous_kept & (difference <= tolerance * distances)


def once(score: Score, share: float) -> Score:
    """A score of which tokens that the screen before has kept already keep a ``share``."""
    return lambda view: score(view) * torch.where(kept_before(view), share, 1.0)


def suppressed(score: Score, amount: float) -> Score:
    """A score lowered beside higher neighbours."""
    return lambda view: suppress(score(view), view.grid, amount)


def both(first: Score, second: Score) -> Score:
    """Sum of the ranks under two scores."""
    return lambda view: rank(first(view)) + rank(second(view))


def either(first: Score, second: Score) -> Score:
    """The better rank under two scores: each names about half of what is kept."""
    return lambda view: torch.maximum(rank(first(view)), rank(second(view)) - 1e-6)


def product(first: Score, second: Score) -> Score:
    """Product of two scores."""
    return lambda view: first(view) * second(view)


SCORES: dict[str, Score] = {
    "random": random,
    "window": window,
    "h2o": h2o,
    "key_mean": key_mean,
    "key_neighbours": key_neighbours,
    "value_norm": value_norm,
    "value_from_mean": value_from_mean,
    "value_away": value_away,
    "value_head_max": value_head_max,
    "value_neighbours": value_neighbours,
    "value_neighbour_distance": value_neighbour_distance,
    "hidden_mean": hidden_mean,
    "hidden_distance": hidden_distance,
    "hidden_norm": hidden_norm,
    "hidden_neighbours": hidden_neighbours,
    "changed": changed,
    "value_norm peaks": peaked(value_norm),
    "value_from_mean peaks": peaked(value_from_mean),
    "hidden_mean peaks": peaked(hidden_mean),
    "value_norm suppressed": suppressed(value_norm, 0.1),
    "value_from_mean + hidden_mean": both(value_from_mean, hidden_mean),
    "value_from_mean + hidden_mean peaks": peaked(both(value_from_mean, hidden_mean)),
    "value_from_mean or window": either(value_from_mean, window),
    "value_from_mean peaks or window": either(peaked(value_from_mean), window),
    "random peaks": peaked(random),
    "hidden_distance peaks": peaked(hidden_distance),
    "hidden_distance lowered 0.8": lowered(hidden_distance, 0.8),
    "hidden_distance lowered 0.9": lowered(hidden_distance, 0.9),
    "hidden_distance lowered 0.9 once 0.9": once(lowered(hidden_distance, 0.9), 0.9),
    "hidden_distance lowered 0.9 once 0.7": once(lowered(hidden_distance, 0.9), 0.7),
    "hidden_distance peaks 2": peaked(hidden_distance, 2),
    "hidden_distance suppressed": suppressed(hidden_distance, 0.1),
    "hidden_distance suppressed 0.3": suppressed(hidden_distance, 0.3),
    "hidden_distance + value_from_mean": both(hidden_distance, value_from_mean),
    "hidden_distance + value_from_mean peaks": peaked(both(hidden_distance, value_from_mean)),
    "hidden_distance x changed peaks": peaked(product(hidden_distance, changed)),
    "hidden_distance + changed": both(hidden_distance, changed),
    "hidden_norm peaks": peaked(hidden_norm),
    "hidden_norm + hidden_distance peaks": peaked(both(hidden_norm, hidden_distance)),
    "hidden_norm x changed peaks": peaked(product(hidden_norm, changed)),
    "hidden_norm peaks or window": either(peaked(hidden_norm), window),
    "hidden_neighbour_distance": hidden_neighbour_distance,
    "hidden_neighbour_distance peaks": peaked(hidden_neighbour_distance),
    "hidden_distance + key_mean peaks": peaked(both(hidden_distance, key_mean)),
}
