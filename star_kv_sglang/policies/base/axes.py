"""The three axes of STaR-KV on what stands out: a prior over key heads, what was kept before, a temperature."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from star_kv_sglang.algorithm.batch import joined
from star_kv_sglang.algorithm.looks import Looks, entropy_temperature, weigh_looks, with_temperature
from star_kv_sglang.algorithm.params import ScorerParams
from star_kv_sglang.algorithm.state import TrajectoryState
from star_kv_sglang.algorithm.to_device import to_device
from star_kv_sglang.policies.base.distinctness import Ranked, Screenshot, is_kept_before
from star_kv_sglang.policies.base.grid import places_of_ranks
from star_kv_sglang.policies.base.interface import Observation
from star_kv_sglang.policies.base.params import DistinctnessParams

Place = tuple[int, int]
"""Request and index of one of its screenshots."""


@dataclass(frozen=True)
class Look:
    """One screenshot, V live tokens, as the axes leave it.

    Attributes:
        ranked: By distances that the axes have weighed.
        fading: float32 [L, V], what later screenshots leave of its tokens; None where that axis is off.
        state: What the request inherits of this saliency.
        scorer: Which axes are on, and how strong.
    """

    ranked: Ranked
    fading: torch.Tensor | None
    state: TrajectoryState
    scorer: ScorerParams

    def place_scores(self, ranks: torch.Tensor, *, fades: bool) -> torch.Tensor:
        """Scores that compare over screenshots, float32 [L, V]: those of the screenshot's places, to 1 / temperature.

        Args:
            ranks: float32 [L, V], the ranks that its tokens are kept by.
            fades: Screenshots of one prompt compete, so that later ones leave less of it.
        """
        return self.ranked.place_scores(
            places_of_ranks(ranks), self.scorer, self.state.temperature_ema, self.fading if fades else None
        )


class Looker:
    """Ranks the screenshots of a batch by what stands out, and brings the state of that saliency a step further.

    Args:
        seen: Of a policy with `Norms.CENTRED`.
        scorer: Which axes are on, and how strong.
        params: What counts how much on one screenshot.
    """

    def __init__(self, seen: Observation, scorer: ScorerParams, params: DistinctnessParams) -> None:
        self._seen = seen
        self._scorer = scorer
        self._params = params
        inherited = [state.looks or TrajectoryState() for state in seen.states]
        self._looks: Looks | None = None
        # Where no screenshot has a live token nothing is gathered, and there is nothing to weigh.
        if (scorer.prior or scorer.temporal) and _looked_at(seen):
            self._looks = weigh_looks(
                group_saliency(seen, subspaces=scorer.subspaces),
                seen.layouts,
                seen.kv_indptr,
                seen.frame_offsets,
                inherited,
                scorer,
                seen.ops,
            )
        self._inherited = inherited

    def states(self) -> Sequence[TrajectoryState]:
        """What each request leaves behind of this saliency."""
        states = self._inherited if self._looks is None else self._looks.states
        return [self._remember(request, state) for request, state in enumerate(states)]

    def look(self, request: int, index: int) -> Look:
        """Rank the tokens of a screenshot that has live ones."""
        screenshot = Screenshot.of(self._seen, request, index)
        factor = fading = None
        if self._looks is not None:
            span, age = self._seen.frame(request, index), len(self._seen.layouts[request].frames) - 1 - index
            looks_back = self._scorer.temporal and self._params.kept_before < 1
            copies = is_kept_before(self._seen, request, index) if looks_back else None
            factor = self._looks.factors_of(request, span, copies, kept_before=self._params.kept_before)
            fading = self._looks.fading(request, span, age) if self._scorer.temporal else None
        return Look(screenshot.ranked(self._params, factor), fading, self._inherited[request], self._scorer)

    def _remember(self, request: int, state: TrajectoryState) -> TrajectoryState:
        """With the temperature of the newest screenshot, where it is new; nobody asks for it without smoothing."""
        layout, before = self._seen.layouts[request], self._inherited[request]
        is_new = layout.window and layout.frames and layout.num_frames_total > before.num_frames
        if not is_new or not self._scorer.temperature_smoothing or not layout.frames[-1].num_live:
            return state
        distances = Screenshot.of(self._seen, request, len(layout.frames) - 1).distances
        temperature = entropy_temperature(distances, before, self._scorer)
        return with_temperature(replace(state, num_frames=layout.num_frames_total), temperature)


def group_saliency(seen: Observation, *, subspaces: bool) -> torch.Tensor:
    """How far each token stands out, by group: its distance, dealt out as the distances of its values are.

    The mean over the groups is the distance of the layer's input, which ranks better than any distance of keys or
    values; the values say in which of the groups it lies.

    Args:
        seen: Of a policy with `Norms.CENTRED`.
        subspaces: False: every group has the mean of all.

    Returns:
        float32 [L, G, N], filled on screenshots that are scored and on each request's current one, 0 elsewhere.
    """
    spans = [seen.frame(*place) for place in _looked_at(seen)]
    own = _value_distances(seen, spans) if spans and subspaces else None
    num_groups = seen.values[0].shape[1] if own is None else own.shape[1]
    saliency = seen.frame_norms.new_zeros(len(seen.frame_norms), num_groups, seen.bounds[-1])
    distances = [seen.frame_norms[:, span] for span in spans]
    if own is None:
        for span, distance in zip(spans, distances, strict=True):
            saliency[:, :, span] = distance[:, None]
        return saliency
    first = 0
    for span, distance in zip(spans, distances, strict=True):
        last = first + span.stop - span.start
        seen.ops.deal_distances(distance, own[:, :, first:last], saliency[:, :, span])
        first = last
    return saliency


def _value_distances(seen: Observation, spans: Sequence[slice]) -> torch.Tensor:
    """How far each token's values lie from its screenshot's mean, of every key head of the model, [L, G, n]."""
    bounds = [0]
    for span in spans:
        bounds.append(bounds[-1] + span.stop - span.start)
    own = seen.ops.group_distances(
        seen.values,
        joined([seen.slots[span] for span in spans]),
        to_device(bounds, seen.slots.device),
        joined([_counts(seen, span) for span in spans]),
        max_rows=max(span.stop - span.start for span in spans),
    )
    return seen.all_groups(own)


def _counts(seen: Observation, span: slice) -> torch.Tensor:
    """Which tokens of a screenshot its centre is made of, bool [L, V]: all but sinks."""
    if seen.sinks is None:
        return torch.ones(seen.frame_norms[:, span].shape, dtype=torch.bool, device=seen.slots.device)
    return ~seen.sinks[:, span]


def _looked_at(seen: Observation) -> Sequence[Place]:
    """Screenshots that are scored, and those that tell the axes something new."""
    places = dict.fromkeys(seen.scored_frames())
    for request, layout in enumerate(seen.layouts):
        if layout.window and layout.frames and layout.frames[-1].num_live:
            places[request, len(layout.frames) - 1] = None
    return list(places)
