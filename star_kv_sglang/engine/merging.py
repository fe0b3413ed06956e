"""Evicted pairs are merged into kept ones before these move (LOOK-M, arXiv 2406.18139).

Each pair that a unit drops of a screenshot goes to the one that it keeps of the same screenshot whose key is nearest by
cosine: many to one. A unit is a layer, or a key head of a layer where heads keep tokens of their own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F

from star_kv_sglang.policies.base.interface import Merge

if TYPE_CHECKING:
    from star_kv_sglang.engine.compaction import KVPools

ROWS = 2048
"""Dropped pairs that are compared with the kept ones at a time, so that memory does not grow with their number."""


def merge_dropped(
    pools: KVPools, slots: torch.Tensor, spans: Sequence[tuple[int, int]], quotas: Sequence[int], kept: torch.Tensor
) -> None:
    """Merge what is dropped of each segment into what is kept of it, in place; keys and values alike.

    What was merged once counts as one pair when it is merged again.

    Args:
        pools: ``merge`` says how.
        slots: int64 [N], live slots of the segments, one after the other.
        spans: Range of each segment in ``slots``.
        quotas: What stays of each.
        kept: int32 [num_units, N], as ``select_topn`` writes it: packed indices at the front of each segment's range.
    """
    if pools.merge is None:
        return
    for (start, end), quota in zip(spans, quotas, strict=True):
        if not 0 < quota < end - start:
            continue
        stays = kept[:, start : start + quota].long() - start  # [num_units, quota]
        is_kept = torch.zeros(kept.shape[0], end - start, dtype=torch.uint8, device=kept.device)
        is_kept.scatter_(1, stays, 1)
        goes = is_kept.argsort(dim=1, stable=True)[:, : end - start - quota]
        for unit, (keys, values) in enumerate(_units(pools)):
            into, out = slots[start:end][stays[unit]], slots[start:end][goes[unit]]
            nearest, cosine = _nearest(keys[out], keys[into])
            for pool in (keys, values):
                pool[into] = _merged(pool[into], pool[out], nearest, cosine, pools.merge)


def _units(pools: KVPools) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Keys and values of each unit, [num_slots, ...]."""
    for keys, values in zip(pools.keys, pools.values, strict=True):
        if pools.per_head:
            yield from ((keys[:, head], values[:, head]) for head in range(keys.shape[1]))
        else:
            yield keys, values


def _nearest(dropped: torch.Tensor, kept: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Index of the nearest kept key for each dropped one, int64 [E], and the cosine of the two, float32 [E]."""
    directions = F.normalize(kept.flatten(1).float(), dim=1)
    parts = [(F.normalize(rows.flatten(1).float(), dim=1) @ directions.T).max(dim=1) for rows in dropped.split(ROWS)]
    return torch.cat([part.indices for part in parts]), torch.cat([part.values for part in parts])


def _merged(
    kept: torch.Tensor, dropped: torch.Tensor, nearest: torch.Tensor, cosine: torch.Tensor, how: Merge
) -> torch.Tensor:
    """Each kept row with what goes to it, [n, ...], in the pool's dtype."""
    rows, more = kept.float(), dropped.float()
    if how is Merge.PIVOTAL:
        more = (more + rows[nearest]) / 2
    elif how is Merge.WEIGHTED:
        more = more * cosine.view(-1, *[1] * (more.ndim - 1))
    count = torch.ones(len(rows), device=rows.device).index_add_(0, nearest, torch.ones_like(cosine))
    return (rows.index_add(0, nearest, more) / count.view(-1, *[1] * (rows.ndim - 1))).to(kept.dtype)
