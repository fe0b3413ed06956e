"""What requests are told to have seen is what their tokens found in the pool, in random histories of the real tree."""

from __future__ import annotations

import logging
from array import array
from collections import Counter, defaultdict
from typing import Any, ClassVar

import pytest
import torch
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import invariant, run_state_machine_as_test
from sglang.srt.mem_cache.common import release_kv_cache

from star_kv_sglang.cache.radix_cache import CacheListener, StarRadixCache, Stored
from star_kv_sglang.cache.segments import Frame
from star_kv_sglang.engine.compaction import prune_path
from star_kv_sglang.engine.kept import Computed, note_stored
from star_kv_sglang.kept_format import KeptRecord
from star_kv_sglang.rl import visible
from star_kv_sglang.triton_ops.dispatch import get_ops
from tests.cache.test_state_machine import PagedTreeMachine, TreeMachine
from tests.cache.world import NUM_LAYERS, FakeRequest, TreeWorld

logger = logging.getLogger(__name__)


class RememberAndPrune(CacheListener):
    """What the policy's engine does when something was stored, with random prunes."""

    def __init__(self, world: RememberingWorld) -> None:
        self.world = world

    def on_released(self, req: Any) -> None:
        if not req.is_over:
            self.world.stored.discard(req.rid)
            self.world.computed[req.rid].put_back(self.world.tree, self.world.tree.path(req.last_node), req)

    def on_stored(self, tree: StarRadixCache, stored: Stored) -> None:
        req: Any = stored.req
        world, computed = self.world, self.world.computed[req.rid]
        tree.label_frames(stored.path, req.frames)
        asks = req.rid in world.asking
        note_stored(tree, stored.path, computed, asks=asks)
        if req.rid not in world.stored:
            computed.stored(tree, stored.path, ends_prompt=stored.ends_prompt, asks=asks)
        if not stored.ends_prompt:
            return
        world.stored.add(req.rid)
        kept = world.choices.pop(req.rid, None)
        if kept is not None:
            private_from = max(tree.sharing.shared_until(stored.path), world.peer_prefix_len(req))
            done = prune_path(tree, stored, kept, world.pools, get_ops("reference"), private_from=private_from)
            if done.num_freed:
                computed.pruned(req, tree.prune_time)
        if asks and not stored.has_row:
            world.compare(req, stored)


class RememberingWorld(TreeWorld):
    """Every token's values say which positions it found in the pool when it was computed."""

    def __init__(self, num_slots: int, page_size: int, seed: int) -> None:
        self.computed: dict[str, Computed] = {}
        self.asking: set[str] = set()
        self.stored: set[str] = set()
        self.views: list[list[frozenset[int]]] = []
        self.queries: defaultdict[str, dict[int, tuple[list[frozenset[int]], int]]] = defaultdict(dict)
        self.counts: Counter[str] = Counter()
        super().__init__(num_slots, page_size, seed)

    def make_listener(self) -> CacheListener:
        return RememberAndPrune(self)

    def admit(self, prompt: array[int], frames: tuple[Frame, ...], extra_key: str | None) -> FakeRequest | None:
        req = super().admit(prompt, frames, extra_key)
        if req is not None:
            self.computed[req.rid] = Computed()
            if self.rng.random() < 0.9:
                self.asking.add(req.rid)
        return req

    def prefill(self, req: FakeRequest, end: int) -> bool:
        self.computed[req.rid].begins(req.prefix_len, end, self.tree.prune_time)
        return super().prefill(req, end)

    def put_back(self, req: FakeRequest) -> bool:
        """A request gives its row back and takes one again at once; its answer so far is computed anew."""
        release_kv_cache(req, self.tree, checkpoint=False)  # type: ignore[arg-type]
        self.running.remove(req)
        self.counts["put back"] += 1
        self.prune_unheld(self.rng.randint(0, 1))
        whole = req.full_untruncated_fill_ids
        again = self.admit(whole, req.frames, req.extra_key)
        assert again is not None
        req.kv, req.lock, req.last_node, req.prefix_len = again.kv, again.lock, again.last_node, again.prefix_len
        self.running[-1] = req
        return self.prefill(req, len(whole))

    def finish(self, req: FakeRequest, *, is_insert: bool) -> None:
        self.found = self._row(req, req.kv_len)
        super().finish(req, is_insert=is_insert)

    def _row(self, req: FakeRequest, end: int) -> torch.Tensor:
        row = self.rows.req_to_token[req.kv.req_pool_idx, :end].long()
        return row[row > 0]

    def _write_tokens(self, req: FakeRequest, start: int, end: int, slots: torch.Tensor) -> None:
        super()._write_tokens(req, start, end, slots)
        found = self._row(req, start)
        self.views.append([frozenset(keys[found, 0, 0].tolist()) for keys in self.pools.keys])
        for position in range(max(start, len(req.origin_input_ids) - 1), end):
            self.queries[req.rid].setdefault(position, (self.views[-1], start))
        for values in self.pools.values:
            values[slots, 0, 1] = len(self.views) - 1

    def compare(self, req: FakeRequest, stored: Stored) -> None:
        """What the record shows to each token that is left is what the token has found."""
        length = len(req.full_untruncated_fill_ids)
        raw = self.computed[req.rid].record(
            self.tree,
            stored.path,
            prunes=True,
            num_layers=NUM_LAYERS,
            num_units=NUM_LAYERS,
            prompt_len=len(req.origin_input_ids),
            length=length,
        )
        if not raw["complete"]:
            self.counts[raw["reason"]] += 1
            return
        record = KeptRecord.of(raw)
        self.counts["complete"] += 1
        self.counts["pruned"] += bool(record.prunes)
        self.counts["first"] += record.first is not None
        # As it was before the tree took the answer; one of a single token has none that asks what the others found.
        slots = self.found if len(req.output_ids) > 1 else self.found[:0]
        for layer in range(NUM_LAYERS):
            sees = visible(record, layer, length)[0]
            of_first = visible(record.of_first_token(), layer, length)[0]
            asked = [(place, query) for place, query in self.queries[req.rid].items() if place < length - 1]
            for position, (own, start) in asked:
                row = (of_first if position < len(req.origin_input_ids) else sees)[position]
                assert set(row.nonzero()[:, 0].tolist()) == own[layer] | set(range(start, position + 1))
            positions = self.pools.keys[layer][slots, 0, 0]
            views = self.pools.values[layer][slots, 0, 1]
            for position, view in zip(positions.tolist(), views.tolist(), strict=True):
                if position == length - 1:
                    continue  # the newest token has asked nobody
                found = self.views[view][layer]
                told = set(sees[position].nonzero()[:, 0].tolist())
                first_new = max(found, default=-1) + 1
                told -= set(range(first_new, position + 1))
                assert told == found, f"{req.rid}: token {position} of layer {layer} has seen others: {told ^ found}"


class Remembering:
    """Random histories in which most requests ask for what was kept."""

    page_size: int
    world: RememberingWorld
    reasons: ClassVar[Counter[str]] = Counter()

    def make_world(self, slots: int, seed: int) -> Any:
        return RememberingWorld(slots, self.page_size, seed)

    @invariant()
    def everything_holds(self) -> None:
        """Compared where a request ends."""

    def _one_token(self, req: FakeRequest, token: int) -> None:
        """Now and then a request is put back in the middle of its answer, and something is pruned before it goes on."""
        super()._one_token(req, token)  # type: ignore[misc]
        if req in self.world.running and self.world.rng.random() < 0.2:
            if self.world.put_back(req):
                self.world.store(req)
            else:
                self.world.finish(req, is_insert=False)

    def teardown(self) -> None:
        if hasattr(self, "world"):
            self.reasons.update(self.world.counts)


class RememberingMachine(Remembering, TreeMachine):
    """With pages of one slot."""


class PagedRememberingMachine(Remembering, PagedTreeMachine):
    """With pages of 16 slots."""


@pytest.mark.parametrize("machine", [RememberingMachine, PagedRememberingMachine], ids=["page1", "page16"])
def test_random_histories_are_told_as_they_were(machine: Any) -> None:
    Remembering.reasons.clear()
    options = settings(
        deadline=None,
        suppress_health_check=list(HealthCheck),
        max_examples=80,
        stateful_step_count=40,
        derandomize=True,
        phases=[Phase.generate],
    )
    run_state_machine_as_test(machine, settings=options)
    reasons = Remembering.reasons
    logger.info("%s: %s", machine.__name__, dict(reasons))
    assert reasons["pruned"] > 25, reasons
    unknown = sum(reasons[reason] for reason in reasons if " " in reason and reason != "put back")
    assert unknown < 0.2 * reasons["complete"], reasons
    assert reasons["put back"] > 10, reasons
    assert reasons["first"] or machine.page_size > 1, "the tree never held a prompt's end of another request"
