"""What must hold after every step."""

from __future__ import annotations

from array import array
from typing import Any

import numpy as np
import torch

from star_kv_sglang.cache.segments import live_ranges
from tests.cache.sequences import frames_in
from tests.cache.world import NUM_LAYERS, FakeRequest, TreeWorld


def check(world: TreeWorld) -> None:
    """All invariants of the tree and its pools."""
    check_every_slot_has_one_owner(world)
    check_sizes(world)
    check_nodes(world)
    check_private(world)
    for req in world.running:
        check_row(world, req)


def check_every_slot_has_one_owner(world: TreeWorld) -> None:
    """available + tree live + request-owned = pool; nothing owned twice, nothing free and owned, slot 0 never used."""
    page = world.page_size
    free_pages = world.allocator.get_all_free_pages().tolist()
    free = [slot for p in free_pages for slot in (range(p * page, p * page + page) if page > 1 else (p,))]
    in_tree = world.tree.all_values_flatten().tolist()
    owned: list[int] = []
    for req in world.running:
        row = world.rows.req_to_token[req.kv.req_pool_idx]
        end = -(-req.kv_len // page) * page
        slots = row[req.kv.cache_protected_len : req.kv_len].tolist()
        if end > req.kv_len:
            slots += range(slots[-1] + 1, slots[-1] + 1 + end - req.kv_len)
        owned += slots
    first = 1 if page == 1 else page
    everything = sorted(free + in_tree + owned)
    assert everything == list(range(first, first + world.num_slots)), "a slot is lost, or has two owners"


def check_sizes(world: TreeWorld) -> None:
    """SGLang's counters are live slots; leaves that may be evicted are known."""
    tree = world.tree
    nodes = list(tree.nodes())
    locked = sum(tree.num_live(n) for n in nodes if n.lock_ref > 0)
    unlocked = sum(tree.num_live(n) for n in nodes if n.lock_ref == 0)
    assert (tree.protected_size(), tree.evictable_size()) == (locked, unlocked)
    assert tree.total_size() == locked + unlocked
    assert tree.evictable_leaves == {n for n in nodes if not n.children and n.lock_ref == 0}
    assert set(tree._extras) == {tree.root_node, *nodes}
    locks: dict[int, int] = {}
    for req in world.running:
        for node in tree.path(req.last_node):
            locks[node.id] = locks.get(node.id, 0) + 1
    assert {n.id: n.lock_ref for n in nodes if n.lock_ref} == locks


def check_private(world: TreeWorld) -> None:
    """Who can use what, told from the whole tree, and the ledger of scored segments."""
    tree = world.tree
    users: dict[Any, int] = {}
    shared: dict[Any, bool] = {}
    for node in reversed(list(tree.nodes())):
        children = list(node.children.values())
        ends_here = sum(req.last_node is node for req in world.running)
        users[node] = ends_here + len(tree.extra(node).pending_branches) + sum(users[child] > 0 for child in children)
        shared[node] = users[node] > 1 or tree.extra(node).pinned or any(shared[child] for child in children)
        assert (tree.extra(node).used, tree.extra(node).shared) == (users[node] > 0, shared[node])
    assert tree.sharing.private_size == sum(tree.num_live(node) for node, is_shared in shared.items() if not is_shared)
    assert tree.sharing.pinned_size == sum(tree.num_live(node) for node in tree.nodes() if tree.extra(node).pinned)
    if tree.ledger is None:
        return
    ledger, marks = tree.ledger, torch.zeros_like(world.pools.side.segment_ids)  # type: ignore[arg-type]
    seen = []
    for node in tree.nodes():
        extra = tree.extra(node)
        for segment in extra.segments:
            if segment.ident:
                ident = segment.ident
                seen.append(ident)
                assert ledger.node_of(ident) is node and ledger.used[ident]
                assert (ledger.num_live[ident], ledger.core_len[ident]) == (segment.num_live, segment.core_len)
                assert (ledger.shared[ident], ledger.locked[ident]) == (extra.shared, node.lock_ref > 0)
                first = segment.core_start - extra.start
                marks[node.value[first : first + segment.num_live]] = ident
    assert sorted(seen) == np.flatnonzero(ledger.used).tolist()
    assert torch.equal(marks, world.pools.side.segment_ids), "a slot belongs to another segment than it says"


def check_nodes(world: TreeWorld) -> None:
    """Starts, segments, holes and contents of every node."""
    tree = world.tree
    for node in tree.nodes():
        extra = tree.extra(node)
        assert extra.start == tree.end_of(node.parent)
        assert extra.start % world.page_size == 0
        assert (
            len(node.value) == len(node.key)
            and node.lock_ref <= node.parent.lock_ref + (node.parent is tree.root_node) * 99
        )
        assert extra.num_holes == sum(s.num_holes for s in extra.segments)
        live = torch.zeros(len(node.key), dtype=torch.bool)
        for a, b in live_ranges(extra.start, tree.end_of(node), extra.segments):
            live[a - extra.start : b - extra.start] = True
        assert torch.equal(node.value != 0, live), "holes are not where the segments say"
        _check_segments(world, node)
        _check_content(world, node)


def _check_segments(world: TreeWorld, node: Any) -> None:
    extra = world.tree.extra(node)
    last = extra.start
    for segment in extra.segments:
        assert last <= segment.start < segment.end <= world.tree.end_of(node)
        assert segment.core_start % world.page_size == 0 and segment.core_end % world.page_size == 0
        assert segment.num_live % world.page_size == 0 and 0 <= segment.num_live <= segment.core_len
        assert segment.sealed or segment.num_holes == 0
        last = segment.end
    expected = {
        (max(f.start, extra.start), min(f.end, world.tree.end_of(node))) for f in frames_in(_path_tokens(world, node))
    }
    assert {(s.start, s.end) for s in extra.segments} == {(a, b) for a, b in expected if a < b}


def _path_tokens(world: TreeWorld, node: Any) -> array[int]:
    tokens = array("q")
    for one in world.tree.path(node):
        tokens += one.key.token_ids
    return tokens


def _check_content(world: TreeWorld, node: Any) -> None:
    """Outside of pruned cores every slot holds its own token; inside, tokens of the core in order of position."""
    tree, extra = world.tree, world.tree.extra(node)
    tokens = _path_tokens(world, node)
    slots = node.value.long()
    for layer in range(NUM_LAYERS):
        found = world.pools.keys[layer][slots, 0]
        assert torch.equal(found, world.pools.values[layer][slots, 0]), "K and V moved differently"
        positions = found[:, 0].tolist()
        loose = set(range(extra.start, tree.end_of(node)))
        for segment in extra.segments:
            if not segment.sealed:
                continue
            loose -= set(range(segment.core_start, segment.core_end))
            kept = positions[segment.core_start - extra.start : segment.hole_start - extra.start]
            assert kept == sorted(set(kept)), "kept tokens are out of order"
            assert all(segment.core_start <= p < segment.core_end for p in kept), "a token left its segment"
            for offset, position in enumerate(kept, start=segment.core_start - extra.start):
                assert int(found[offset, 1]) == world.identity(node.key.extra_key, tokens, position)
        for position in loose:
            offset = position - extra.start
            assert positions[offset] == position
            assert int(found[offset, 1]) == world.identity(node.key.extra_key, tokens, position)


def check_row(world: TreeWorld, req: FakeRequest) -> None:
    """A request's row says what the tree says."""
    path = world.tree.path(req.last_node)
    values = torch.cat([n.value for n in path]) if path else torch.empty(0, dtype=torch.int64)
    assert len(values) == req.kv.cache_protected_len
    row = world.rows.req_to_token[req.kv.req_pool_idx]
    assert torch.equal(row[: len(values)].long(), values)
    assert bool((row[len(values) : req.kv_len] != 0).all())
