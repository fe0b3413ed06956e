"""Scores that are no numbers: found and replaced on the device, told to the host when it needs to know."""

from __future__ import annotations

from dataclasses import replace

import torch

from star_kv_sglang.engine.host_copy import HostCopy
from star_kv_sglang.policies.base.interface import Observation, PolicyScores


def without_nan(scored: PolicyScores, seen: Observation) -> tuple[PolicyScores, HostCopy]:
    """Give the tokens of every request whose scores hold a NaN scores by recency instead: the newest is kept first.

    A NaN of any layer shows in the mean of the layers; one in the attention may be lost on the way to the scores, with
    all that a layer had to say.

    Args:
        scored: The policy's scores.
        seen: What it scored.

    Returns:
        The scores, those by recency of mean 1 as calibrated ones are, and for each request whether they are.
    """
    mean = scored.layer_mean
    bounds = seen.kv_indptr.long()
    is_nan = mean.isnan()
    if seen.attention is not None:
        is_nan = is_nan | seen.attention.sum(dim=(0, 1)).isnan()
    places = torch.arange(1, len(mean) + 1, device=mean.device)
    if len(seen.layouts) == 1:
        corrupt = replaced = is_nan.any(dim=0, keepdim=True)
        recency = 2.0 * places / (len(mean) + 1)
    else:
        owner = torch.bucketize(places, bounds[1:])
        num_nan = torch.cat([bounds.new_zeros(1), is_nan.cumsum(0)])[bounds].diff()
        corrupt = num_nan > 0
        replaced = corrupt[owner]
        recency = 2.0 * (places - bounds[owner]) / (bounds.diff()[owner] + 1)
    again = scored.for_pruning_again
    sane = replace(
        scored,
        calibrated=torch.where(replaced, recency.to(scored.calibrated.dtype), scored.calibrated),
        layer_mean=torch.where(replaced, recency.to(mean.dtype), mean),
        # Half of it, which is 0 to 1 as those scores are.
        for_pruning_again=None if again is None else torch.where(replaced, (recency / 2).to(again.dtype), again),
    )
    return sane, HostCopy.start(corrupt)
