"""Pruning a path: what is kept of a segment moves into its first slots, layer by layer, and the rest is given back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

import torch

from star_kv_sglang.cache.radix_cache import KeptTokens, StarRadixCache, Stored
from star_kv_sglang.cache.segments import Segment
from star_kv_sglang.cache.side_pools import SidePools
from star_kv_sglang.engine.faults import committing
from star_kv_sglang.engine.kept import remember
from star_kv_sglang.engine.merging import merge_dropped
from star_kv_sglang.policies.base.interface import Merge
from star_kv_sglang.triton_ops.pools import PoolTable

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import Req
    from sglang.srt.mem_cache.radix_cache import TreeNode

    from star_kv_sglang.triton_ops.dispatch import Ops


@dataclass(frozen=True)
class KVPools:
    """Everything that is indexed by slot.

    Attributes:
        keys: One tensor [num_slots, G, D] for each layer.
        values: Likewise.
        side: The scorer's own records.
        per_head: Every key head keeps tokens of its own.
        merge: What becomes of pairs that are dropped; None: they are gone.
    """

    keys: Sequence[torch.Tensor]
    values: Sequence[torch.Tensor]
    side: SidePools
    per_head: bool = False
    merge: Merge | None = None

    @cached_property
    def table(self) -> PoolTable:
        """All pools, each as one tensor [num_slots, ...] for each unit: a layer, or a key head of a layer.

        Norms stay behind where heads move apart: a slot then has no one token in a layer.
        """
        side = self.side
        scores = [] if side.scores is None else [side.scores]
        if self.per_head:
            return PoolTable.build([_heads(self.keys), _heads(self.values), side.frame_offsets, *scores])
        attention = [] if side.attention is None else [side.attention]
        return PoolTable.build([self.keys, self.values, side.frame_offsets, side.frame_norms, *attention, *scores])


def _heads(pool: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    return [tensor[:, head] for tensor in pool for head in range(tensor.shape[1])]


@dataclass(frozen=True)
class Target:
    """A segment that is pruned.

    Attributes:
        node: The node that holds it.
        segment: As it is before.
        num_keep: Tokens that stay of its core, fewer than are live.
    """

    node: TreeNode
    segment: Segment
    num_keep: int


def target_slots(tree: StarRadixCache, target: Target) -> torch.Tensor:
    """Live slots of the core of a target, int64 [num_live]; a view of the node's value."""
    return tree.extra(target.node).core_slots(target.node.value, target.segment)


def prune_targets(
    tree: StarRadixCache, targets: Sequence[Target], slots: torch.Tensor, kept: torch.Tensor, pools: KVPools, ops: Ops
) -> torch.Tensor:
    """Move what stays of all targets into their first slots, layer by layer, in one go, and give the rest back.

    The caller mends the rows of requests that hold the nodes.

    Args:
        tree: The tree.
        targets: At least one.
        slots: int64 [N], live slots of the targets, one after the other.
        kept: int32 [num_units, N], as ``select_topn`` writes it: the packed indices that each unit keeps, ascending,
            at the front of each target's range.
        pools: What moves.
        ops: Kernels or references.

    Returns:
        The slots that were freed.

    Raises:
        HalfPrunedError: Tokens were moved, some or all, and the tree does not know. Any other error has changed
            nothing.
    """
    spans = list(pairwise(accumulate((target.segment.num_live for target in targets), initial=0)))
    ranges = torch.tensor(spans, dtype=torch.int32).to(slots.device, non_blocking=True)
    num_keep = [target.num_keep for target in targets]
    quotas = torch.tensor(num_keep, dtype=torch.int32).to(slots.device, non_blocking=True)
    table = pools.table
    remembered = remember(tree, targets, kept)
    # From here on tokens move: whatever fails leaves some where nobody looks for them.
    with committing():
        merge_dropped(pools, slots, spans, num_keep, kept)
        ops.compact(table, slots, ranges, quotas, kept)
        freed = tree.punch_all([(target.node, target.segment, target.num_keep) for target in targets])
        if remembered is not None:
            remembered()
    return freed


@dataclass
class Pruned:
    """What a prune did.

    Attributes:
        num_freed: Slots that were given back.
        num_skipped: Segments that had changed, or had become shared, since their tokens were chosen.
        segments: Each pruned segment as it was, and the slots that are left of its core.
    """

    num_freed: int = 0
    num_skipped: int = 0
    segments: list[tuple[Segment, torch.Tensor]] = field(default_factory=list)


def prune_path(
    tree: StarRadixCache, stored: Stored, kept: Sequence[KeptTokens], pools: KVPools, ops: Ops, *, private_from: int
) -> Pruned:
    """Prune the private segments of what a request has stored; its row gets the holes too, where it goes on.

    Args:
        tree: The tree.
        stored: The request and its path, the last node of which it locks.
        kept: What stays of each segment.
        pools: Everything that is indexed by slot.
        ops: Kernels or references.
        private_from: Segments that start before this position are shared and stay whole.
    """
    done = Pruned()
    targets: list[Target] = []
    chosen: list[torch.Tensor] = []
    for choice in kept:
        found = tree.segment_at(stored.path, choice)
        if found is None or choice.start < private_from:
            done.num_skipped += 1
            continue
        node, segment = found
        if choice.chosen.shape[1] < segment.num_live:
            told = segment.with_apart(choice.num_apart)
            tree.extra(node).replace_segment(segment, told)
            targets.append(Target(node, told, choice.chosen.shape[1]))
            chosen.append(choice.chosen)
    if not targets:
        return done
    slots = torch.cat([target_slots(tree, target) for target in targets])
    packed = torch.full((chosen[0].shape[0], len(slots)), -1, dtype=torch.int32, device=slots.device)
    start = 0
    for target, tokens in zip(targets, chosen, strict=True):
        packed[:, start : start + target.num_keep] = tokens + start
        done.segments.append((target.segment, slots[start : start + target.num_keep]))
        start += target.segment.num_live
    done.num_freed = len(prune_targets(tree, targets, slots, packed, pools, ops))
    if stored.has_row:
        with committing():
            for target in targets:
                punch_row(tree, stored.req, target)
    return done


def punch_row(tree: StarRadixCache, req: Req, target: Target) -> None:
    """Give the row of a running request the holes of a target that was pruned."""
    holes = slice(target.segment.core_start + target.num_keep, target.segment.hole_start)
    tree.req_to_token_pool.req_to_token[req.kv.req_pool_idx, holes] = 0
