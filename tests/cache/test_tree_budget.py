"""A budget for the whole tree: random histories in which segments are cut again and again by their stored scores."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import strategies as st
from hypothesis.stateful import invariant, rule

from star_kv_sglang.cache.ledger import SegmentLedger
from star_kv_sglang.cache.radix_cache import CacheListener, StarRadixCache, Stored
from star_kv_sglang.engine.tree_budget import TreeBudget, TreeRules
from star_kv_sglang.triton_ops.dispatch import get_ops
from tests.cache.sequences import frame_length, frames_in
from tests.cache.shadow import ShadowedWorld
from tests.cache.test_state_machine import COMMON, TreeMachine, run_histories
from tests.cache.world import NUM_LAYERS, FakeRequest, PruneAtRandom, TreeWorld


class ScoreAndPrune(PruneAtRandom):
    """Scores every prompt, and shrinks before leaves are dropped."""

    world: BudgetWorld

    def on_stored(self, tree: StarRadixCache, stored: Stored) -> None:
        super().on_stored(tree, stored)
        if stored.ends_prompt:
            tree.register_path(stored.path)

    def shrink(self, tree: StarRadixCache, num_tokens: int, *, rank: Any) -> int:
        before = {node: tree.num_live(node) for node in tree.nodes() if node.lock_ref or tree.extra(node).shared}
        cut = self.world.budget.shrink_unused(num_tokens, waiting=(), rank=rank)
        assert cut.num_freed == 0 or not cut.holes
        assert before == {node: tree.num_live(node) for node in before}, "what is held or shared was cut"
        self.world.follow_shrinking(cut.num_freed)
        return cut.num_freed


class BudgetWorld(ShadowedWorld):
    """A world whose tokens have scores that follow them; some prompts are pruned at random."""

    def __init__(self, num_slots: int, page_size: int, seed: int, *, eviction_policy: str = "lru") -> None:
        super().__init__(num_slots, page_size, seed, eviction_policy=eviction_policy)
        assert self.tree.ledger is not None
        self.tree.ledger.slot_ids = self.pools.side.segment_ids
        weight, last = self.rng.choice([0.0, 0.5]), self.rng.choice([True, False])
        rules = TreeRules(frame_floor=0.1, branch_floor=0.2, recency_weight=weight, current_last=last)
        self.budget = TreeBudget(self.tree, self.pools, get_ops("reference"), rules)

    def make_listener(self) -> CacheListener:
        return ScoreAndPrune(self)

    def make_ledger(self) -> SegmentLedger | None:
        return SegmentLedger()

    def prunes_next(self) -> bool:
        return self.rng.random() < 0.5

    def _write_tokens(self, req: FakeRequest, start: int, end: int, slots: torch.Tensor) -> None:
        super()._write_tokens(req, start, end, slots)
        scores = self.pools.side.scores
        assert scores is not None
        for layer in range(NUM_LAYERS):
            scores[layer, slots] = score_of(self.pools.keys[layer][slots, 0, 1], layer)


def score_of(identity: torch.Tensor, layer: int) -> torch.Tensor:
    """A score that tells tokens and layers apart."""
    return ((identity * (7 + 4 * layer)) % 61).to(torch.float16) - 5


class BudgetMachine(TreeMachine):
    """The tree machine with a budget step; its evictions shrink first, and leave little to be left out."""

    world: BudgetWorld
    common = COMMON

    def make_world(self, slots: int, seed: int) -> BudgetWorld:
        return BudgetWorld(slots, self.page_size, seed)

    @rule(share=st.sampled_from([0.0, 0.3, 0.7, 0.95]), running=st.booleans())
    def budget_step(self, share: float, running: bool) -> None:
        """The private nodes must become smaller; rows of running requests may change, or not."""
        tree = self.world.tree
        limit = int(share * tree.sharing.private_size)
        reqs: Sequence[Any] = [r for r in self.world.running if r.prefilled] if running else ()
        waiting: list[Any] = [r for r in self.world.running if not r.prefilled]
        shared = {node: tree.num_live(node) for node in tree.nodes() if tree.extra(node).shared}
        before = tree.sharing.private_size
        cut = self.world.budget.reduce_private(limit, running=reqs, waiting=waiting)
        self.world.follow_cuts()
        assert before - tree.sharing.private_size == cut.num_freed
        assert cut.num_freed < max(1, before - limit) + self.page_size, "more was cut than had to be"
        assert shared == {node: tree.num_live(node) for node in shared}
        assert all(req in reqs for req, _ in cut.holes)

    @invariant()
    def scores_follow_their_tokens(self) -> None:
        if hasattr(self, "world"):
            slots = self.world.tree.all_values_flatten()
            scores = self.world.pools.side.scores
            assert scores is not None
            for layer in range(NUM_LAYERS):
                expected = score_of(self.world.pools.keys[layer][slots, 0, 1], layer)
                assert torch.equal(scores[layer, slots], expected)


class PagedBudgetMachine(BudgetMachine):
    """The same with pages of 16 slots."""

    page_size = 16


MACHINES = pytest.mark.parametrize("machine", [BudgetMachine, PagedBudgetMachine], ids=["page1", "page16"])


@MACHINES
def test_random_histories(machine: type[BudgetMachine]) -> None:
    """The same histories every time."""
    run_histories(machine, least_steps=2_000, max_examples=36, stateful_step_count=50, derandomize=True)


@pytest.mark.parametrize("policy", ["priority", "lru"])
def test_shrinking_follows_sglangs_order_of_eviction(policy: str) -> None:
    """Two branches with the same screens, of priority 9 and 0: with ``priority`` the 0 is cut, and dropped, first."""
    world = BudgetWorld(400, 1, seed=3, eviction_policy=policy)
    world.prunes_next = lambda: False  # type: ignore[method-assign]
    live: dict[int, Any] = {}
    for word, priority in ((1, 9), (2, 0)):
        tokens = array("q", [word, *[-30 - 97] * frame_length(-30 - 97), 3])
        req = world.admit(tokens, frames_in(tokens), None)
        assert req is not None
        req.priority = priority
        assert world.prefill(req, len(tokens))
        world.store(req)
        live[priority] = req.last_node
        world.finish(req, is_insert=True)
    held = {priority: world.tree.num_live(node) for priority, node in live.items()}
    TreeWorld.evict(world, 10)
    assert world.tree.num_live(live[0]) < held[0]
    assert (world.tree.num_live(live[9]) == held[9]) == (policy == "priority")
    TreeWorld.evict(world, world.tree.num_live(live[0]))
    if policy == "priority":
        assert live[0] not in set(world.tree.nodes()), "the lower rank is dropped before the higher one is cut"
        assert world.tree.num_live(live[9]) == held[9]
        TreeWorld.evict(world, 5)
        assert world.tree.num_live(live[9]) == held[9] - 5


@pytest.mark.nightly
@MACHINES
def test_random_histories_at_length(machine: type[BudgetMachine]) -> None:
    """Other histories every time."""
    run_histories(machine, least_steps=20_000, max_examples=400, stateful_step_count=100)
