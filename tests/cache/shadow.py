"""A world whose every step the oracle takes too, and the comparison of the two."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from typing import Any

import torch
from sglang.srt.mem_cache.radix_cache import RadixKey

from star_kv_sglang.cache.lookup import descend, held_length
from star_kv_sglang.cache.radix_cache import StarRadixCache
from star_kv_sglang.cache.segments import Frame
from tests.cache.oracle import Cell, Oracle, OracleSegment, Range
from tests.cache.sequences import frames_in
from tests.cache.world import FakeRequest, TreeWorld

NUM_ASKED = 6
"""Earlier sequences whose matches are compared after every step."""


class ShadowedWorld(TreeWorld):
    """The real tree and pools beside their model in plain Python."""

    def __init__(self, num_slots: int, page_size: int, seed: int, *, eviction_policy: str = "lru") -> None:
        super().__init__(num_slots, page_size, seed, eviction_policy=eviction_policy)
        self.oracle = Oracle(num_slots, page_size)
        self.num_shrunk = 0
        self.sequences: list[tuple[str | None, array[int], list[Range]]] = []

    def admit(self, prompt: array[int], frames: tuple[Frame, ...], extra_key: str | None) -> FakeRequest | None:
        req = super().admit(prompt, frames, extra_key)
        if req is not None:
            expected = self.oracle.admit(req.rid, extra_key, prompt)
            assert self._pages(self.tree.path_device_indices(req.last_node)) == expected, (
                "the tree matched something else"
            )
            self.sequences = [*self.sequences[1 - NUM_ASKED :], (extra_key, prompt, _ranges(req))]
        return req

    def prefill(self, req: FakeRequest, end: int) -> bool:
        if not super().prefill(req, end):
            return False
        holder = self.oracle.holders[req.rid]
        assert req.num_live == end - self.oracle.num_holes(self.oracle.path(holder)), "another live length was planned"
        if req.prefilled:
            assert req.planned == self.oracle.private_segments(req.rid, end, _ranges(req)), "other segments are private"
            holder.prefilled = True
        return True

    def store(self, req: FakeRequest) -> None:
        kept = self._kept(req)
        super().store(req)
        self.oracle.store(req.rid, req.extend_end)
        if req.prefilled:
            self.oracle.prune(req.rid, _ranges(req), kept)

    def finish(self, req: FakeRequest, *, is_insert: bool) -> None:
        kept, num_stored = self._kept(req), req.kv_len
        super().finish(req, is_insert=is_insert)
        if is_insert:
            self.oracle.holders[req.rid].tokens = list(req.full_untruncated_fill_ids)
            self.oracle.store(req.rid, num_stored)
            self.oracle.prune(req.rid, _ranges(req), kept)
        self.oracle.finish(req.rid, is_insert=is_insert)

    def pin(self, req: FakeRequest, *, at_most: int) -> bool:
        is_pinned = super().pin(req, at_most=at_most)
        assert is_pinned == self.oracle.pin(req.rid, at_most), "it was pinned for one of the two only"
        return is_pinned

    def prune_unheld(self, num_segments: int) -> None:
        super().prune_unheld(num_segments)
        self.follow_cuts()

    def leave_out(self, req: FakeRequest, num_segments: int) -> None:
        before = len(self.oracle.free)
        super().leave_out(req, num_segments)
        self.follow_cuts()
        self.oracle.counts["left_out"] += len(self.oracle.free) > before

    def evict(self, num_tokens: int) -> None:
        super().evict(num_tokens)
        self.oracle.evict(num_tokens - self.num_shrunk)
        self.num_shrunk = 0

    def follow_shrinking(self, num_freed: int) -> None:
        """The tree has cut segments before it drops leaves."""
        self.num_shrunk = num_freed
        before = len(self.oracle.free)
        self.follow_cuts()
        assert (len(self.oracle.free) - before) * self.page_size == num_freed, "less came free than the tree says"

    def flush(self) -> None:
        super().flush()
        self.oracle.clear()

    def _grow(self, req: FakeRequest, end: int) -> bool:
        size = self.page_size
        first = -(-req.kv_len // size) * size
        num_missing = max(0, -(-(end - first) // size))
        done = super()._grow(req, end)
        assert done == (len(self.oracle.free) >= num_missing), "the pool was short for one of the two only"
        if done:
            row = self.rows.req_to_token[req.kv.req_pool_idx]
            self.oracle.grow(req.rid, [slot // size for slot in row[first:end:size].tolist()])
        return done

    def follow_cuts(self) -> None:
        """Take over which segments the tree has made smaller by a choice of its own; what follows from it is compared,
        and that nobody else could use them."""
        shared = self.oracle.shared_cells()
        for node, cells, frames in self._paths():
            here = self.tree.extra(node).segments
            was = self.oracle.segments(cells, frames)[-len(here) or len(cells) :]
            for segment, before in zip(here, was, strict=True):
                if segment.num_live < before.num_live:
                    assert cells[-1] not in shared, "what others can use was cut"
                    self.oracle.seal(cells, before, segment.num_live)

    def agree(self) -> None:
        """The tree and the oracle hold the same: owners of all slots, locks, segments, sizes, matches."""
        size, tree, oracle = self.page_size, self.tree, self.oracle
        free = self.allocator.get_all_free_pages().tolist()
        assert len(free) == len(oracle.free), "a page is lost or free twice"
        assert set(free) == oracle.free, "another page is free"
        locks, shared, seen, private = oracle.locks(), oracle.shared_cells(), 0, 0
        for node, cells, frames in self._paths():
            own = cells[(tree.extra(node).start) // size :]
            seen += len(own)
            assert [cell.page for cell in own] == self._pages(node.value), "another page holds it"
            assert [cell.begins_node for cell in own] == [True] + [False] * (len(own) - 1), "nodes begin elsewhere"
            assert {locks.get(cell, 0) for cell in own} == {node.lock_ref}, "others hold it"
            assert [cell.pending_branches for cell in own] == [[] for _ in own[1:]] + [
                tree.extra(node).pending_branches
            ]
            assert {cell.pinned for cell in own} == {tree.extra(node).pinned}
            assert {cell in shared for cell in own} == {tree.extra(node).shared}, "others can use it"
            private += sum(cell.page is not None for cell in own if cell not in shared)
            assert self._segments_to(node) == oracle.segments(cells, frames)
        assert seen == sum(1 for _ in oracle.cells()), "the tree has lost a page"
        assert (tree.protected_size(), tree.evictable_size()) == oracle.sizes()
        assert tree.sharing.private_size == private * size
        assert self.allocator.available_size() == len(oracle.free) * size
        for req in self.running:
            self._agree_on_row(req)
        for salt, tokens, _ in self.sequences:
            key = RadixKey(tokens, salt).page_aligned(size)
            assert held_length(tree, key) == len(oracle.held(salt, tokens)) * size
            assert insertable_length(tree, key) == oracle.insertable(salt, tokens)

    def _agree_on_row(self, req: FakeRequest) -> None:
        holder = self.oracle.holders[req.rid]
        assert req.kv.cache_protected_len == holder.in_tree
        row = self.rows.req_to_token[req.kv.req_pool_idx, : req.kv_len]
        path = [cell.page for cell in self.oracle.path(holder)]
        assert self._pages(row) == [*path, *holder.pages], "the row shows other pages"

    def _paths(self) -> Iterator[tuple[Any, list[Cell], list[Range]]]:
        """Each node, the oracle's cells down to its end, and the screenshots of the sequence."""
        for node in self.tree.nodes():
            tokens: array[int] = array("q")
            for one in self.tree.path(node):
                tokens += one.key.token_ids
            cells = self.oracle.held(node.key.extra_key, tokens)
            assert len(cells) * self.page_size == len(tokens), "the oracle does not know a node"
            yield node, cells, [(frame.start, frame.end) for frame in frames_in(tokens)]

    def _segments_to(self, node: Any) -> list[OracleSegment]:
        segments = [s for one in self.tree.path(node) for s in self.tree.extra(one).segments]
        return [OracleSegment(s.start, s.end, s.core_start, s.core_end, s.num_live, s.sealed) for s in segments]

    def _pages(self, slots: torch.Tensor) -> list[int | None]:
        """Physical pages of consecutive positions, the last perhaps in part; None for a hole."""
        size, numbers = self.page_size, slots.tolist()
        pages: list[int | None] = []
        for i in range(0, len(numbers), size):
            first = numbers[i]
            run = range(first, first + size) if first else [0] * size
            assert numbers[i : i + size] == list(run[: len(numbers) - i]), "a page is torn"
            pages.append(first // size if first else None)
        return pages

    def _kept(self, req: FakeRequest) -> list[tuple[int, int, int, int]]:
        return [(k.start, k.end, k.num_live, k.chosen.shape[1]) for k in self.choices.get(req.rid, ())]


def _ranges(req: FakeRequest) -> list[Range]:
    return [(frame.start, frame.end) for frame in req.frames]


def insertable_length(tree: StarRadixCache, key: RadixKey) -> int:
    """How much of a key the tree can hold without splitting a sealed segment.

    A key that ends or diverges inside of a sealed segment can be stored up to the segment only.
    """
    done = 0
    for node, matched in descend(tree, key):
        allowed = matched if matched == len(node.key) else tree.splittable_length(node, matched)
        if allowed < matched:
            return done + allowed
        done += matched
    return len(key)
