"""Every policy's rule again, slowly and in float64: scores of one request, and the choice that follows from them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch

from star_kv_sglang.policies.base.params import BESIDE_PEAK, KEPT_BEFORE
from tests.policies.prefill import (
    BUDGET,
    NUM_GROUPS,
    NUM_HEADS,
    NUM_LAYERS,
    PARAMS,
    PROMPTS,
    SM_SCALE,
    Prefill,
    Prompt,
)

Rows = list[list[float]]
"""Scores [unit][position] of one request; a unit is a layer, or a head of a layer."""


def attention(run: Prefill, prompt: Prompt, first: int, queries: range) -> torch.Tensor:
    """[L, H, position], attention of these queries, added up; window tokens are there too."""
    total = torch.zeros(NUM_LAYERS, NUM_HEADS, prompt.length, dtype=torch.float64)
    for layer in range(NUM_LAYERS):
        for head in range(NUM_HEADS):
            keys = run.key[layer, first : first + prompt.length, head * NUM_GROUPS // NUM_HEADS].double()
            for query in queries:
                logits = keys[: query + 1] @ run.query[layer, first + query, head].double() * SM_SCALE
                total[layer, head, : query + 1] += logits.softmax(0)
    return total


def pooled(weights: torch.Tensor, num_past: int) -> torch.Tensor:
    """Mean of five neighbours, zeros outside of the past."""
    padded = torch.zeros(*weights.shape[:-1], num_past + 4, dtype=torch.float64)
    padded[..., 2:-2] = weights[..., :num_past]
    return torch.stack([padded[..., i : i + 5].mean(-1) for i in range(num_past)], dim=-1)


def per_mean(scores: torch.Tensor, num_past: int, length: int) -> Rows:
    """Each unit's scores over their mean; 0 behind the past."""
    rows = [[float(s) for s in unit[:num_past] / unit[:num_past].mean()] for unit in scores]
    return [row + [0.0] * (length - num_past) for row in rows]


def windowed(run: Prefill, prompt: Prompt, first: int, window: int) -> torch.Tensor:
    num_past = prompt.length - window
    return pooled(attention(run, prompt, first, range(num_past, prompt.length)), num_past)


def snapkv(run: Prefill, prompt: Prompt, first: int) -> Rows:
    scores = windowed(run, prompt, first, PARAMS.observation_window)
    groups = scores.unflatten(1, (NUM_GROUPS, -1)).mean(2).flatten(0, 1)
    return per_mean(groups, groups.shape[1], prompt.length)


def fastgen(run: Prefill, prompt: Prompt, first: int, recovered: float = 0.95) -> Rows:
    """A head whose attention is local keeps the most recent tokens, every other one the most frequent."""
    window = PARAMS.observation_window
    num_past = prompt.length - window
    weights = attention(run, prompt, first, range(num_past, prompt.length))[..., :num_past]
    heads = weights.unflatten(1, (NUM_GROUPS, -1)).mean(2).flatten(0, 1)
    shown = [p for start, end in prompt.spans for p in range(start, min(end, num_past))]
    old = shown[: len(shown) - math.ceil(BUDGET * sum(end - start for start, end in prompt.spans))]
    rows = []
    for head in heads:
        local = sum(float(head[p]) for p in old) <= (1 - recovered) * float(head.sum())
        rows.append(torch.arange(1, num_past + 1, dtype=torch.float64) if local else head)
    return per_mean(torch.stack(rows), num_past, prompt.length)


def stlite(run: Prefill, prompt: Prompt, first: int, neighbourhood: int = 3, repeated: float = 0.9) -> Rows:
    """Attention of the tokens around, and what the next screenshot has at the same place behind all others."""
    num_past = prompt.length - PARAMS.observation_window
    heads = attention(run, prompt, first, range(num_past, prompt.length))[..., :num_past]
    rows = per_mean(heads.mean(1), num_past, prompt.length)
    found = [list(row) for row in rows]
    for layer in range(NUM_LAYERS):
        for start, num_rows, num_cols in prompt.frames:
            for y in range(num_rows):
                for x in range(num_cols):
                    near = [
                        rows[layer][start + ny * num_cols + nx]
                        for ny in range(num_rows)
                        for nx in range(num_cols)
                        if max(abs(ny - y), abs(nx - x)) <= neighbourhood // 2
                    ]
                    found[layer][start + y * num_cols + x] = sum(near) / len(near)
        highest = max(found[layer][:num_past])
        for (start, *grid), (later, *other) in zip(prompt.frames, prompt.frames[1:], strict=False):
            for place in range(grid[0] * grid[1] if grid == other else 0):
                one, two = (run.value[layer, first + at + place].flatten().double() for at in (start, later))
                if float(one @ two) >= repeated * float(one.norm() * two.norm()):
                    found[layer][start + place] -= highest + 1
    return found


def vlcache(run: Prefill, prompt: Prompt, first: int) -> Rows:
    scores = windowed(run, prompt, first, prompt.length - prompt.spans[-1][1]).mean(1)
    return per_mean(scores, scores.shape[1], prompt.length)


def h2o(run: Prefill, prompt: Prompt, first: int) -> Rows:
    scores = attention(run, prompt, first, range(prompt.length)).mean(1)
    shown = {p for start, end in prompt.spans for p in range(start, end)}
    scores[:, [p for p in range(prompt.length) if p not in shown]] = 0
    return per_mean(scores, prompt.length - PARAMS.observation_window, prompt.length)


def guikv(run: Prefill, prompt: Prompt, first: int) -> Rows:
    scores = windowed(run, prompt, first, PARAMS.observation_window).mean(1)
    start, end = prompt.spans[-1]
    norms = run.hidden[:, first + start : first + end].double().norm(dim=-1)
    for layer in range(NUM_LAYERS):
        z = (norms[layer] - norms[layer].mean()) / norms[layer].std()
        scores[layer, start:end] += PARAMS.boost_alpha * (z / PARAMS.boost_temperature).softmax(0)
    rows = per_mean(scores, scores.shape[1], prompt.length)
    earlier = [p for a, b in prompt.spans[:-1] for p in range(a, b)]
    for layer in range(NUM_LAYERS):
        residuals = [_residual(run, layer, first, p, range(start, end)) for p in earlier]
        order = sorted(range(len(earlier)), key=lambda i: residuals[i])
        highest = max(rows[layer][: scores.shape[1]])
        for i in order[: len(earlier) - math.ceil(BUDGET * len(earlier))]:
            rows[layer][earlier[i]] -= highest + 1
    return rows


def _residual(run: Prefill, layer: int, first: int, position: int, current: range) -> float:
    total = 0.0
    for group in range(NUM_GROUPS):
        basis = run.key[layer, first + current.start : first + current.stop, group].double()
        key = run.key[layer, first + position, group].double()
        # At most 32 directions count; the screenshots here have fewer tokens than that.
        solution = torch.linalg.lstsq(basis.T, key[:, None], driver="gelsd").solution[:, 0]
        total += float((key - basis.T @ solution).norm() / key.norm())
    return total / NUM_GROUPS


@dataclass(frozen=True)
class Axes:
    """Settings of the axes, for the first prompt of a branch: every pattern equals its running mean."""

    prior: bool = True
    temporal: bool = True
    temperature: bool = True
    subspaces: bool = True
    prior_warmup_steps: int = 5
    prior_ramp_steps: int = 10

    @property
    def prior_weight(self) -> float:
        is_on = self.prior and self.prior_warmup_steps == 0
        return PARAMS.prior_lambda * min(1.0, 1 / self.prior_ramp_steps) if is_on else 0.0


def star_paper(run: Prefill, prompt: Prompt, first: int, **axes: Any) -> Rows:
    return _published(run, prompt, first, Axes(**axes), centred=False)


def _published(run: Prefill, prompt: Prompt, first: int, axes: Axes, *, centred: bool) -> Rows:
    scores = windowed(run, prompt, first, PARAMS.observation_window)
    num_past = scores.shape[2]
    start, end = prompt.spans[-1]
    rows = []
    for layer in range(NUM_LAYERS):
        hidden = run.hidden[layer, first + start : first + end].double()
        norms = (hidden - hidden.mean(0) if centred else hidden).norm(dim=-1)
        z = (norms - norms.mean()) / norms.std()
        heads = scores[layer].clone()
        heads[:, start:end] += PARAMS.boost_alpha * (z / PARAMS.boost_temperature).softmax(0)
        base = heads.mean(0)
        final = base * prior_factors(heads.unflatten(0, (NUM_GROUPS, -1)).mean(1), prompt, axes)
        for age, (a, b) in enumerate(reversed(prompt.spans)):
            final[a:b] *= math.exp(-PARAMS.discount_delta * age) if axes.temporal else 1
        rows.append(final ** (1 / entropy_temperature(base, axes)))
    return per_mean(torch.stack(rows), num_past, prompt.length)


def entropy_temperature(base: torch.Tensor, axes: Axes) -> float:
    """Of scores that are not below 0."""
    if not axes.temperature:
        return 1.0
    entropy = -sum(float(p) * math.log(p) for p in base / base.sum() if p > 0) / math.log(len(base))
    return PARAMS.temperature_min + (PARAMS.temperature_max - PARAMS.temperature_min) * entropy


def prior_factors(groups: torch.Tensor, prompt: Prompt, axes: Axes) -> torch.Tensor:
    """[position], from the saliency [G, position] of each group; what the newest screenshot tells decides."""
    groups = groups if axes.subspaces else groups.mean(0, keepdim=True).expand_as(groups)
    _, num_rows, num_cols = prompt.frames[-1]
    start, end = prompt.spans[-1]
    told = torch.tensor([information(group[start:end].tolist(), num_rows, num_cols) for group in groups])
    spread = float(told.max() - told.min())
    scaled = (told - told.min()) / spread if spread > 1e-4 else torch.full_like(told, 0.5)
    weights = (scaled.double() / PARAMS.prior_tau).softmax(0)
    strongest = [max(range(NUM_GROUPS), key=lambda g: (float(column[g]), -g)) for column in groups.T]
    factor = axes.prior_weight
    return torch.stack([1 - factor + factor * NUM_GROUPS * weights[group] for group in strongest])


def information(scores: Sequence[float], num_rows: int, num_cols: int) -> float:
    """Mutual information of 16 bins of scores and 12 x 12 bins of the screen, in nats."""
    order = sorted(range(len(scores)), key=lambda i: (scores[i], i))
    pairs = []
    for i in range(len(scores)):
        row, col = divmod(i, num_cols)
        place = (math.floor((row + 0.5) / num_rows * 12), math.floor((col + 0.5) / num_cols * 12))
        pairs.append((order.index(i) * 16 // len(scores), place))
    joint, by_value, by_place = Counter(pairs), Counter(v for v, _ in pairs), Counter(p for _, p in pairs)
    return sum(n / len(scores) * math.log(n * len(scores) / (by_value[v] * by_place[p])) for (v, p), n in joint.items())


def looks(run: Prefill, prompt: Prompt, first: int, axes: Axes) -> Rows:
    """What stands out: `distinct`, its distances weighed by the groups in whose values they lie."""
    rows = [[0.0] * prompt.length for _ in range(NUM_LAYERS)]
    for layer in range(NUM_LAYERS):
        groups = torch.zeros(NUM_GROUPS, prompt.length, dtype=torch.float64)
        distances = [0.0] * prompt.length
        for start, end in prompt.spans:
            distances[start:end] = _distances(run.hidden[layer, first + start : first + end])
            own = [_distances(run.value[layer, first + start : first + end, g]) for g in range(NUM_GROUPS)]
            for i in range(end - start):
                mean = sum(group[i] for group in own) / NUM_GROUPS
                for g in range(NUM_GROUPS):
                    groups[g, start + i] = distances[start + i] * own[g][i] / mean
        factors = prior_factors(groups, prompt, axes).tolist()
        for (start, num_rows, num_cols), (_, end) in zip(prompt.frames, prompt.spans, strict=True):
            rows[layer][start:end] = standing_out(distances[start:end], num_rows, num_cols, factors=factors[start:end])
    return rows


def _distances(vectors: torch.Tensor) -> list[float]:
    """Of each vector to the mean of all."""
    return [float(norm) for norm in (vectors.double() - vectors.double().mean(0)).norm(dim=-1)]


def star(run: Prefill, prompt: Prompt, first: int, question_share: float | None = None, **axes: Any) -> Rows:
    """Two lists that are filled in turns; a prompt with one screenshot has only what stands out."""
    standing_out = looks(run, prompt, first, Axes(**axes))
    asked = _published(run, prompt, first, Axes(**axes), centred=True)
    share = _share(prompt, question_share)
    rows = [[0.0] * prompt.length for _ in range(NUM_LAYERS)]
    for layer in range(NUM_LAYERS):
        for start, end in prompt.spans:
            places = range(start, end)
            by_question = sorted(places, key=lambda p: (-asked[layer][p], p))
            by_look = sorted(places, key=lambda p: (-standing_out[layer][p], p))
            turns = {
                p: min(
                    (by_question.index(p) + 1) / share if share > 0 else math.inf,
                    (by_look.index(p) + 1) / (1 - share) if share < 1 else math.inf,
                )
                for p in places
            }
            order = sorted(places, key=lambda p: (turns[p], p))
            for place, p in enumerate(order):
                rows[layer][p] = 1 - place / (len(order) - 1)
    return rows


def _share(prompt: Prompt, question_share: float | None) -> float:
    if question_share is not None:
        return question_share
    return 0.5 if len(prompt.frames) > 1 else 0.0


def star_mean(
    run: Prefill, prompt: Prompt, first: int, question_share: float | None = None, **axes: Any
) -> list[float]:
    """What screenshots compete by: the window's score where the question has a share."""
    if _share(prompt, question_share):
        return mean_of(_published(run, prompt, first, Axes(**axes), centred=True))
    return mean_of(star(run, prompt, first, question_share, **axes))


def mean_of(rows: Rows) -> list[float]:
    return [sum(column) / len(rows) for column in zip(*rows, strict=True)]


def streaming(run: Prefill, prompt: Prompt, first: int) -> Rows:
    return [[float(p) for p in range(prompt.length)] for _ in range(NUM_LAYERS)]


def distinct(run: Prefill, prompt: Prompt, first: int, beside_peak: float = BESIDE_PEAK, peaks: bool = True) -> Rows:
    rows = [[0.0] * prompt.length for _ in range(NUM_LAYERS)]
    for (start, num_rows, num_cols), (_, end) in zip(prompt.frames, prompt.spans, strict=True):
        for layer in range(NUM_LAYERS):
            hidden = run.hidden[layer, first + start : first + end].double()
            mean = hidden.mean(0)
            norms = [float((token - mean).norm()) for token in hidden]
            rows[layer][start:end] = standing_out(norms, num_rows, num_cols, beside_peak=beside_peak, peaks=peaks)
    return rows


def standing_out(
    norms: Sequence[float],
    num_rows: int,
    num_cols: int,
    *,
    beside_peak: float = BESIDE_PEAK,
    peaks: bool = True,
    kept_before: float = KEPT_BEFORE,
    before: Mapping[int, float] = MappingProxyType({}),
    factors: Sequence[float] | None = None,
) -> list[float]:
    """Scores of a whole screenshot in one layer, by place.

    Args:
        norms: Distance of each token to the mean.
        num_rows, num_cols: The grid.
        beside_peak, peaks, kept_before: The settings.
        before: What the screenshot before has kept: distance by place.
        factors: What else each distance is multiplied by.
    """
    near = [_near(i, num_rows, num_cols) for i in range(len(norms))]
    is_peak = [peaks and norm == max(norms[j] for j in near[i]) for i, norm in enumerate(norms)]
    counted = list(norms)
    for i, norm in enumerate(norms):
        if beside_peak > 0 and not is_peak[i] and any(is_peak[j] for j in near[i]):
            counted[i] *= beside_peak
        if i in before and abs(before[i] - norm) <= 0.1 * norm:
            counted[i] *= kept_before
        counted[i] *= 1 if factors is None else factors[i]
    return [
        sum(other < one for other in counted) / (len(counted) - 1) + (is_peak[i] and beside_peak == 0)
        for i, one in enumerate(counted)
    ]


def _near(place: int, num_rows: int, num_cols: int) -> list[int]:
    """The place itself and its up to eight neighbours."""
    y, x = divmod(place, num_cols)
    return [
        ny * num_cols + nx
        for ny in range(max(y - 1, 0), min(y + 2, num_rows))
        for nx in range(max(x - 1, 0), min(x + 2, num_cols))
    ]


RULES: dict[str, Callable[..., Rows]] = {
    "snapkv": snapkv,
    "fastgen": fastgen,
    "stlite": stlite,
    "vlcache": vlcache,
    "h2o": h2o,
    "lookm": h2o,
    "guikv": guikv,
    "streaming": streaming,
    "window": streaming,
    "distinct": distinct,
    "star": star,
    "star-paper": star_paper,
}
BY_SIZE = {"distinct", "star", "window"}
MEANS = {"star": star_mean}


def chosen_by_hand(name: str, run: Prefill, **settings: Any) -> list[list[list[list[int]]]]:
    """Positions that stay, [request][screenshot][unit], by the rule as it is written down.

    Args:
        name: The policy.
        run: What ran.
        settings: Of the policy; its rule takes them.
    """
    result, first = [], 0
    for prompt in PROMPTS:
        rule = {key: value for key, value in settings.items() if key != "question_competes"}
        rows = RULES[name](run, prompt, first, **rule)
        mean = MEANS[name](run, prompt, first, **rule) if name in MEANS else mean_of(rows)
        part = 1.0
        if name == "star":
            part -= _share(prompt, settings.get("question_share")) * settings.get("question_competes", 0.5)
        result.append(_choose(rows, mean, prompt, by_size=name in BY_SIZE, part=part))
        first += prompt.length
    return result


def _choose(
    rows: Rows, mean: list[float], prompt: Prompt, *, by_size: bool, part: float = 1.0
) -> list[list[list[int]]]:
    sizes = [end - start for start, end in prompt.spans]
    budget = math.ceil(BUDGET * sum(sizes))
    shares = [math.floor(part * (budget * n // sum(sizes))) if by_size else math.ceil(0.02 * n) for n in sizes]
    taken = [_best(mean, start, end, n) for (start, end), n in zip(prompt.spans, shares, strict=True)]
    rest = [p for (a, b), kept in zip(prompt.spans, taken, strict=True) for p in range(a, b) if p not in kept]
    winners = set(sorted(rest, key=lambda p: (-mean[p], p))[: budget - sum(shares)])
    quotas = [n + sum(a <= p < b for p in winners) for n, (a, b) in zip(shares, prompt.spans, strict=True)]
    return [[_best(row, a, b, n) for row in rows] for n, (a, b) in zip(quotas, prompt.spans, strict=True)]


def _best(scores: Sequence[float], start: int, end: int, count: int) -> list[int]:
    return sorted(sorted(range(start, end), key=lambda p: (-scores[p], p))[:count])
