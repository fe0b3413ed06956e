"""The tree-wide budget: all scored segments compete, and what loses is pruned again without a query."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from sglang.srt.mem_cache.radix_cache import RadixKey

from star_kv_sglang.cache.lookup import nodes_along
from star_kv_sglang.engine.compaction import KVPools, Target, prune_targets, punch_row, target_slots
from star_kv_sglang.engine.faults import committing
from star_kv_sglang.engine.tree_quotas import Contest, tree_quotas

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import Req
    from sglang.srt.mem_cache.radix_cache import TreeNode

    from star_kv_sglang.cache.ledger import SegmentLedger
    from star_kv_sglang.cache.radix_cache import StarRadixCache
    from star_kv_sglang.triton_ops.dispatch import Ops

MAX_SEGMENTS_PER_STEP = 256
"""Most segments that one step cuts: each costs the host ten to twenty microseconds."""

EXCESS_FACTOR = 1.5
"""Where more segments compete than `MAX_SEGMENTS_PER_STEP`, the threshold is that of a larger excess, so that fewer cut
segments make up the real one. The excess grows as the number of segments does, and by this factor."""


@dataclass(frozen=True)
class TreeRules:
    """How segments compete.

    Attributes:
        frame_floor: Least share of each screenshot that stays.
        branch_floor: Least share of each branch's screenshots that stays.
        recency_weight: A branch's scores are halved this many times for every round of the others in which it was
            silent; 0 treats all branches alike.
        current_last: The newest screenshot of each running request is cut only where the rest does not suffice.
    """

    frame_floor: float
    branch_floor: float
    recency_weight: float
    current_last: bool = True


@dataclass(frozen=True)
class Cut:
    """What a step did.

    Attributes:
        num_freed: Slots that were given back.
        num_segments: Segments that were cut.
        holes: Slots that each running request lost, by request id.
    """

    num_freed: int = 0
    num_segments: int = 0
    holes: tuple[tuple[Req, int], ...] = ()


class TreeBudget:
    """Cuts the tree's private scored segments down.

    Args:
        tree: The tree; it keeps a ledger.
        pools: Everything that is indexed by slot, with stored scores.
        ops: Kernels or references.
        rules: How segments compete.
    """

    def __init__(self, tree: StarRadixCache, pools: KVPools, ops: Ops, rules: TreeRules) -> None:
        if tree.ledger is None or pools.side.scores is None or pools.side.segment_ids is None:
            raise ValueError("build the tree with a ledger and the side pools with scores: both are needed here")
        self._tree = tree
        self._ledger: SegmentLedger = tree.ledger
        self._pools = pools
        self._scores, self._slot_ids = pools.side.scores, pools.side.segment_ids
        self._ops = ops
        self._rules = rules

    def reduce_private(self, max_private: int, *, running: Sequence[Req], waiting: Iterable[Req]) -> Cut:
        """Prune private segments, of running requests too, until all private nodes hold at most ``max_private`` slots,
        as far as the floors allow.

        The newest screenshot of each running request is cut only where the rest does not suffice, unless the rules say
        otherwise. What is locked by anyone else, such as a prompt that is about to run, stays as it is.

        Args:
            max_private: Slots.
            running: Requests with a row whose prompt lies in the tree; no forward of theirs is in flight.
            waiting: Requests that will be matched.
        """
        excess = self._tree.sharing.private_size - max_private
        if excess <= 0:
            return Cut()
        holders = {node: req for req in running for node in self._private_tail(req)}
        elsewhere = self._locked() - self._idents(holders)
        asking = running if self._rules.current_last else ()
        current = {ident for req in asking for ident in self._newest_frame(req)}
        return self._cut(excess, self._wanted_by_several(waiting, holders) | elsewhere, current, holders)

    def shrink_unused(self, num_tokens: int, *, waiting: Iterable[Req], rank: Any = None) -> Cut:
        """Prune private segments that no request holds until ``num_tokens`` slots are free, as far as the floors allow.

        Args:
            num_tokens: Slots.
            waiting: Requests that will be matched.
            rank: Segments of nodes whose eviction rank is higher stay as they are; None: there are no ranks.
        """
        spared = self._wanted_by_several(waiting, {}) | self._locked()
        return self._cut(num_tokens, spared | self._ranked_above(rank), set(), {})

    def _ranked_above(self, rank: Any) -> set[int]:
        if rank is None:
            return set()
        ledger, rank_of = self._ledger, self._tree.eviction.rank_of
        idents = np.flatnonzero(ledger.used & ~ledger.shared).tolist()
        return {ident for ident in idents if rank_of(ledger.node_of(ident)) > rank}

    def _cut(self, excess: int, spared: set[int], current: set[int], holders: dict[TreeNode, Req]) -> Cut:
        contest = self._contest(spared, current)
        if current and int(contest.num_live.sum()) - contest.least < excess:
            contest = self._contest(spared, set())
        total = int(contest.num_live.sum())
        if total <= contest.least:
            return Cut()
        factor = EXCESS_FACTOR * len(contest.idents) / MAX_SEGMENTS_PER_STEP
        if factor <= EXCESS_FACTOR:
            return self._apply(contest, self._quotas(contest, total - excess), holders)
        stricter = self._quotas(contest, total - math.ceil(factor * excess))
        losses = contest.num_live - stricter
        order = np.argsort(-losses, kind="stable")
        cut = order[: int(np.searchsorted(np.cumsum(losses[order]), excess)) + 1]
        quotas = contest.num_live.copy()
        quotas[cut] = stricter[cut]
        return self._apply(contest, quotas, holders)

    def _quotas(self, contest: Contest, budget: int) -> npt.NDArray[np.int64]:
        return tree_quotas(
            contest, self._scores, self._slot_ids, self._ops, budget=budget, page_size=self._tree.page_size
        )

    def _contest(self, spared: set[int], current: set[int]) -> Contest:
        """All private segments but the spared ones; the current ones with all of their tokens as a floor."""
        ledger, page = self._ledger, self._tree.page_size
        competes = ledger.used & ~ledger.shared
        competes[list(spared)] = False
        idents = np.flatnonzero(competes)
        num_live, core_len = ledger.num_live[idents], ledger.core_len[idents]
        floors = np.minimum(_pages(np.ceil(self._rules.frame_floor * core_len), page), num_live)
        whole = np.isin(idents, list(current))
        floors[whole] = num_live[whole]
        numbers, branches = np.unique(ledger.branch[idents], return_inverse=True)
        visual = np.bincount(branches, core_len, len(numbers))
        held = np.bincount(branches, num_live, len(numbers)).astype(np.int64)
        branch_floors = np.minimum(_pages(np.ceil(self._rules.branch_floor * visual), page), held)
        weights = None
        if self._rules.recency_weight:
            rounds = (ledger.turn - ledger.last_turn[idents]) / max(1, len(numbers))
            weights = np.exp2(-self._rules.recency_weight * rounds).astype(np.float32)
        return Contest(idents, num_live, floors, branches.astype(np.int64), branch_floors, weights)

    def _apply(self, contest: Contest, quotas: npt.NDArray[np.int64], holders: dict[TreeNode, Req]) -> Cut:
        targets = []
        for index in np.flatnonzero(quotas < contest.num_live):
            ident = int(contest.idents[index])
            node = self._ledger.node_of(ident)
            segment = next(s for s in self._tree.extra(node).segments if s.ident == ident)
            targets.append(Target(node, segment, int(quotas[index])))
        if not targets:
            return Cut()
        slots = torch.cat([target_slots(self._tree, target) for target in targets])
        kept = self._best(targets, slots)
        rows = [(holders[target.node], target) for target in targets if target.node.lock_ref > 0]
        num_freed = len(prune_targets(self._tree, targets, slots, kept, self._pools, self._ops))
        for target in targets:
            self._tree.extra(target.node).num_cuts += 1
        holes: Counter[Req] = Counter()
        with committing():
            for req, target in rows:
                punch_row(self._tree, req, target)
                holes[req] += target.segment.num_live - target.num_keep
        return Cut(num_freed, len(targets), tuple(holes.items()))

    def _best(self, targets: Sequence[Target], slots: torch.Tensor) -> torch.Tensor:
        """The tokens that each unit keeps of every target, packed as ``select_topn`` writes them."""
        ends = np.cumsum([target.segment.num_live for target in targets])
        starts = np.concatenate([[0], ends[:-1]])
        spans = torch.from_numpy(np.stack([starts, ends], axis=1).astype(np.int32)).to(slots.device, non_blocking=True)
        quotas = torch.tensor([target.num_keep for target in targets], dtype=torch.int32).to(
            slots.device, non_blocking=True
        )
        scores = self._scores[:, slots].float()
        best = torch.full(scores.shape, -1, dtype=torch.int32, device=slots.device)
        longest = max(target.segment.num_live for target in targets)
        self._ops.select_topn(scores, spans, quotas, max_segment=longest, out=best)
        return best

    def _locked(self) -> set[int]:
        return set(np.flatnonzero(self._ledger.used & self._ledger.locked).tolist())

    def _private_tail(self, req: Req) -> list[TreeNode]:
        """Nodes at the end of a request's path that no other branch can use."""
        nodes: list[TreeNode] = []
        node = req.last_node
        while node is not self._tree.root_node and not self._tree.extra(node).shared:
            nodes.append(node)
            node = node.parent
        return nodes

    def _newest_frame(self, req: Req) -> set[int]:
        """Segments of a request's newest screenshot."""
        found: set[int] = set()
        frame = None
        for node in self._private_tail(req):
            segments = self._tree.extra(node).segments
            if not segments:
                continue
            frame = frame or segments[-1].frame
            found.update(segment.ident for segment in segments if segment.frame == frame)
            if segments[0].frame != frame:
                break
        return found

    def _idents(self, nodes: Iterable[TreeNode]) -> set[int]:
        return {segment.ident for node in nodes for segment in self._tree.extra(node).segments}

    def _wanted_by_several(self, waiting: Iterable[Req], holders: dict[TreeNode, Req]) -> set[int]:
        """Segments that a waiting request will use besides another one that waits, or that runs on them."""
        users: Counter[TreeNode] = Counter()
        for req in waiting:
            key = RadixKey(req.origin_input_ids, req.extra_key, cache_salt=req.cache_salt)
            users.update(nodes_along(self._tree, key))
        return self._idents(node for node, count in users.items() if count + (node in holders) > 1)


def _pages(tokens: npt.NDArray[np.float64], page_size: int) -> npt.NDArray[np.int64]:
    """Rounded up to whole pages."""
    return (np.ceil(tokens / page_size) * page_size).astype(np.int64)
