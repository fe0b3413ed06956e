"""What is dropped is merged into what is kept, against the rule written down again, pair by pair."""

from __future__ import annotations

import math
from random import Random

import pytest
import torch

from star_kv_sglang.cache.side_pools import SidePools
from star_kv_sglang.config import MERGES, NO_MERGE, PolicyConfig
from star_kv_sglang.engine.compaction import KVPools
from star_kv_sglang.engine.merging import merge_dropped
from star_kv_sglang.engine.model_parts import merge_of
from star_kv_sglang.errors import ConfigError
from star_kv_sglang.policies import policy_class, policy_params
from star_kv_sglang.policies.base.interface import Merge

LAYERS, SLOTS, GROUPS, DIM = 2, 60, 2, 5
SPANS, QUOTAS = [(0, 12), (12, 15), (15, 32)], [4, 3, 1]
"""The second segment loses nothing."""


def pools(*, per_head: bool, merge: Merge | None, dtype: torch.dtype = torch.float32) -> KVPools:
    """Pools of random keys and values."""
    generator = torch.Generator().manual_seed(3)
    made = torch.randn(2, LAYERS, SLOTS, GROUPS, DIM, generator=generator).to(dtype)
    side = SidePools.allocate(LAYERS, SLOTS, norm_dtype=torch.float32, device="cpu", units_per_layer=1)
    return KVPools(list(made[0]), list(made[1]), side, per_head=per_head, merge=merge)


def chosen(num_units: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Slots in no order, and what each unit keeps of each segment."""
    rng = Random(4)
    slots = torch.tensor(rng.sample(range(1, SLOTS), SPANS[-1][1]))
    kept = torch.full((num_units, len(slots)), -1, dtype=torch.int32)
    for unit in range(num_units):
        for (start, end), quota in zip(SPANS, QUOTAS, strict=True):
            best = sorted(rng.sample(range(start, end), quota))
            kept[unit, start : start + quota] = torch.tensor(best, dtype=torch.int32)
    return slots, kept


def by_hand(keys: list[list[float]], rows: list[list[float]], kept: list[int], how: Merge) -> dict[int, list[float]]:
    """The kept rows of a segment, by index, after the others went to their nearest."""

    def cosine(one: list[float], other: list[float]) -> float:
        return sum(a * b for a, b in zip(one, other, strict=True)) / math.hypot(*one) / math.hypot(*other)

    coming: dict[int, list[list[float]]] = {index: [rows[index]] for index in kept}
    for index, row in enumerate(rows):
        if index in kept:
            continue
        near = max(kept, key=lambda one: cosine(keys[index], keys[one]))
        if how is Merge.PIVOTAL:
            row = [(a + b) / 2 for a, b in zip(row, rows[near], strict=True)]
        elif how is Merge.WEIGHTED:
            row = [cosine(keys[index], keys[near]) * a for a in row]
        coming[near].append(row)
    return {index: [sum(column) / len(come) for column in zip(*come, strict=True)] for index, come in coming.items()}


@pytest.mark.parametrize("how", list(Merge), ids=[how.value for how in Merge])
@pytest.mark.parametrize("per_head", [False, True], ids=["layers", "heads"])
def test_each_dropped_pair_goes_to_the_kept_one_with_the_nearest_key(how: Merge, per_head: bool) -> None:
    made, before = pools(per_head=per_head, merge=how), pools(per_head=per_head, merge=how)
    slots, kept = chosen(LAYERS * GROUPS if per_head else LAYERS)
    merge_dropped(made, slots, SPANS, QUOTAS, kept)
    for unit in range(len(kept)):
        layer, heads = (unit // GROUPS, [unit % GROUPS]) if per_head else (unit, [0, 1])
        for pool, old in ((made.keys, before.keys), (made.values, before.values)):
            touched = set()
            for (start, end), quota in zip(SPANS, QUOTAS, strict=True):
                places = slots[start:end]
                keys = before.keys[layer][places][:, heads].flatten(1).tolist()
                rows = old[layer][places][:, heads].flatten(1).tolist()
                stays = [int(i) - start for i in kept[unit, start : start + quota]]
                want = by_hand(keys, rows, stays, how)
                touched |= {int(places[index]) for index in want}
                for index, row in want.items():
                    assert pool[layer][places[index], heads].flatten().tolist() == pytest.approx(row, abs=1e-5)
            others = [slot for slot in range(SLOTS) if slot not in touched]
            assert torch.equal(pool[layer][others][:, heads], old[layer][others][:, heads])


def test_without_a_way_to_merge_nothing_changes_and_narrow_types_are_kept() -> None:
    made = pools(per_head=False, merge=None)
    merge_dropped(made, *_arguments())
    assert torch.equal(made.keys[0], pools(per_head=False, merge=None).keys[0])
    narrow = pools(per_head=False, merge=Merge.AVERAGED, dtype=torch.bfloat16)
    merge_dropped(narrow, *_arguments())
    assert narrow.keys[0].dtype is torch.bfloat16
    assert not torch.equal(narrow.keys[0], pools(per_head=False, merge=None, dtype=torch.bfloat16).keys[0])


def _arguments() -> tuple[torch.Tensor, list[tuple[int, int]], list[int], torch.Tensor]:
    slots, kept = chosen(LAYERS)
    return slots, SPANS, QUOTAS, kept


def test_any_policy_may_be_asked_to_merge_and_one_does_by_itself() -> None:
    def way(name: str, merge: str | None) -> Merge | None:
        return merge_of(PolicyConfig(name, merge=merge), policy_class(name)(policy_params(name, {})))

    assert way("lookm", None) is Merge.PIVOTAL
    assert way("lookm", NO_MERGE) is None
    assert way("star", None) is None
    assert way("star", "weighted") is Merge.WEIGHTED
    assert (NO_MERGE, *(how.value for how in Merge)) == MERGES
    with pytest.raises(ConfigError, match=r"merge 'mean' must be one of none, averaged, pivotal, weighted"):
        PolicyConfig("star", merge="mean")
