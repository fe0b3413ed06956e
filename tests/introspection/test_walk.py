"""The scheduler's side: a walk in pieces, what each layer keeps of a screenshot, texts, and why something was cut."""

from __future__ import annotations

import base64
import gc
import time
import weakref
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from sglang.srt.mem_cache.base_prefix_cache import EvictParams

from star_kv_sglang.cache.cut_log import MOST_CUTS, CutLog, because
from star_kv_sglang.engine.introspection import MOST_TEXT_TOKENS, Introspection
from star_kv_sglang.engine.stats import PolicyCounters
from star_kv_sglang.engine.tree_walk import PIECE_S, TreeWalk
from star_kv_sglang.introspection.protocol import CUT_FIELDS, NODE_FIELDS, PROMPT, SHORT_POOL, TOKEN_BUDGET
from star_kv_sglang.tools.bench.tree import COLS, KEPT, NODE_TOKENS, NUM_TEXT, ROWS, TURNS, Forest, _star_tree, turn

NUM_LAYERS = 3


def forest(num_nodes: int, *, spare: int = 2_000) -> Forest:
    made = Forest(_star_tree(num_nodes * NODE_TOKENS + spare), num_nodes)
    made.tree.cut_log = CutLog()
    return made


def introspection(tree: Any, shows: str = "content") -> Introspection:
    offsets = torch.full((NUM_LAYERS, tree.token_to_kv_pool_allocator.size + 1), -1, dtype=torch.int16)
    pools = SimpleNamespace(side=SimpleNamespace(frame_offsets=offsets), keys=[None] * NUM_LAYERS)
    config = SimpleNamespace(policy="star", budget=0.2, token_budget=None, introspection=shows)
    context: Any = SimpleNamespace(
        tree=tree, config=config, counters=PolicyCounters(), parts=SimpleNamespace(pools=pools)
    )
    return Introspection(context)


def walked(walk: TreeWalk, **limits: Any) -> tuple[list[dict[str, Any]], int]:
    """All nodes of a walk, by the names of their fields, and in how many pieces they came."""
    nodes, pieces = [], 0
    while not walk.is_over:
        nodes += [dict(zip(NODE_FIELDS, node, strict=True)) for node in walk.piece(**limits)]
        pieces += 1
    return nodes, pieces


def test_every_node_is_told_once_and_behind_its_parent() -> None:
    tree = forest(500).tree
    nodes, pieces = walked(TreeWalk(tree), most_nodes=64, seconds=9.0)
    assert pieces == -(-tree.num_nodes // 64)
    idents = [node["id"] for node in nodes]
    assert sorted(idents) == sorted(node.id for node in tree.nodes())
    seen = {0}
    for node in nodes:
        assert node["parent"] in seen
        seen.add(node["id"])
    assert sum(node["live"] for node in nodes) == tree.evictable_size() + tree.protected_size()


def test_what_happens_between_two_pieces_is_left_out_or_comes_later_and_is_said() -> None:
    made = forest(200)
    walk = TreeWalk(made.tree)
    told = walk.piece(most_nodes=20, seconds=9.0)
    made.tree.evict(EvictParams(num_tokens=50 * NODE_TOKENS))
    made.match(made.sequences[-1][: NODE_TOKENS * 9 + 3])  # splits the last node of a branch
    rest, _ = walked(walk)
    idents = {node[0] for node in told} | {node["id"] for node in rest}
    assert len(idents) == 20 + len(rest)
    assert {node["parent"] for node in rest} <= {0, *idents}
    assert walk.is_torn
    assert not TreeWalk(made.tree).is_torn


@pytest.mark.parametrize("num_nodes", [1_000, 10_000])
def test_a_piece_ends_in_time(num_nodes: int) -> None:
    """Sixteen nodes lie between two looks at the clock; the rest is what else this machine does, so that the best of
    some walks counts."""
    tree, middles = forest(num_nodes).tree, []
    for _ in range(5):
        walk, longest = TreeWalk(tree), []
        while not walk.is_over:
            started = time.perf_counter()
            walk.piece()
            longest.append(time.perf_counter() - started)
        middles.append(sorted(longest)[len(longest) // 2])
    assert min(middles) < PIECE_S + 0.001, middles


@pytest.mark.parametrize("end", ["evict", "reset"])
def test_a_walk_that_nobody_goes_on_with_keeps_no_dropped_node_alive(end: str) -> None:
    """A client hangs up, or has had as many nodes as a snapshot has."""
    made = forest(200)
    asked = introspection(made.tree)
    asked._walk = TreeWalk(made.tree)
    told = asked._walk.piece(most_nodes=20, seconds=9.0)
    rest = [weakref.ref(node) for node in made.tree.nodes() if node.id not in {node[0] for node in told}]
    if end == "evict":
        made.tree.evict(EvictParams(num_tokens=made.tree.evictable_size()))
    else:
        made.tree.reset()
    gc.collect()
    assert len(rest) > 100 and not any(node() for node in rest)
    piece = asked.answer({"ask": "piece"})
    assert (piece["nodes"], piece["is_over"], piece["is_torn"]) == ([], True, True)


def prune(tree: Any, node: Any, keep: int) -> Any:
    (segment,) = tree.extra(node).segments
    tree.punch(node, segment, keep)
    return tree.extra(node).segments[0]


def test_a_frame_is_told_layer_by_layer() -> None:
    made = forest(TURNS)
    tree, asked = made.tree, introspection(made.tree)
    last = made.match(made.sequences[0])
    segment = prune(tree, last, KEPT)
    offsets = asked._context.parts.pools.side.frame_offsets
    slots = tree.extra(last).core_slots(last.value, segment)
    expected = np.zeros((NUM_LAYERS, ROWS * COLS), bool)
    for layer in range(NUM_LAYERS):
        places = torch.arange(KEPT) * 2 + layer
        offsets[layer, slots] = places.to(torch.int16)
        expected[layer, places] = True
    told = asked.answer({"ask": "frame", "node": last.id, "start": segment.frame.start})
    bits = np.frombuffer(base64.b64decode(told["kept"]), np.uint8).reshape(NUM_LAYERS, -1)
    assert (np.unpackbits(bits, axis=1, count=ROWS * COLS) == expected).all()
    assert (told["rows"], told["cols"], told["units"], told["units_per_layer"]) == (ROWS, COLS, NUM_LAYERS, 1)
    whole = asked.answer({"ask": "frame", "node": last.id, "start": NUM_TEXT})
    assert set(base64.b64decode(whole["kept"])) == {255}
    assert asked.answer({"ask": "frame", "node": last.id, "start": 1})["gone"]
    assert asked.answer({"ask": "frame", "node": 10**9, "start": 1})["gone"]


def test_a_prompt_is_told_in_runs_of_token_ids() -> None:
    made = forest(TURNS)
    last = made.match(made.sequences[0])
    told = introspection(made.tree).answer({"ask": "text", "node": last.id})
    assert told["runs"] == [[1] * NUM_TEXT, None] * TURNS and not told["is_cut"]
    assert introspection(made.tree, "tree").answer({"ask": "text", "node": last.id})["refused"]


def test_a_long_prompt_is_told_from_its_end() -> None:
    made = forest(1, spare=10_000)
    tokens = made.sequences[0] + turn(7, 3)[:1] * (2 * MOST_TEXT_TOKENS)
    made.tree.label_frames([], [])
    slots = made.tree.token_to_kv_pool_allocator.alloc(len(tokens))
    from sglang.srt.mem_cache.base_prefix_cache import InsertParams
    from sglang.srt.mem_cache.radix_cache import RadixKey

    last = made.tree.insert(InsertParams(key=RadixKey(tokens), value=slots)).last_device_node
    told = introspection(made.tree).answer({"ask": "text", "node": last.id})
    assert told["is_cut"] and [len(run) for run in told["runs"]] == [MOST_TEXT_TOKENS]


def test_a_walk_has_the_totals_and_the_cuts_that_are_new() -> None:
    made = forest(3 * TURNS)
    asked = introspection(made.tree)
    prune(made.tree, made.match(made.sequences[0]), KEPT)
    first = asked.answer({"ask": "walk", "cuts_after": 0})
    assert first["is_over"] and len(first["nodes"]) == first["num_nodes"] == made.tree.num_nodes
    assert first["totals"]["live_tokens"] == sum(node[4] for node in first["nodes"])
    (cut,) = first["cuts"]
    assert dict(zip(CUT_FIELDS, cut, strict=True))["left"] == KEPT
    assert asked.answer({"ask": "walk", "cuts_after": cut[0]})["cuts"] == []
    assert asked.answer({"ask": "piece"})["gone"], "the walk was over"


def test_a_cut_says_why() -> None:
    made = forest(2 * TURNS)
    tree, log = made.tree, made.tree.cut_log
    first, second = (made.match(sequence) for sequence in made.sequences[:2])
    prune(tree, first, 20)
    with because(log, TOKEN_BUDGET):
        prune(tree, first, 10)
    assert prune(tree, first, 10).num_live == 10, "nothing goes: no cut"
    tree.drop_leaf(second)
    with because(log, TOKEN_BUDGET):
        tree.drop_leaf(made.match(made.sequences[1]))
    told = [dict(zip(CUT_FIELDS, cut, strict=True)) for cut in log.after(0, 9)]
    assert [(cut["reason"], cut["freed"], cut["left"]) for cut in told] == [
        (PROMPT, 4, 20), (TOKEN_BUDGET, 10, 10), (SHORT_POOL, NODE_TOKENS, 0), (TOKEN_BUDGET, NODE_TOKENS, 0),
    ]  # fmt: skip
    assert [cut["image"] is None for cut in told] == [False, False, True, True]
    assert [cut["number"] for cut in told] == [1, 2, 3, 4]


def test_the_log_of_cuts_is_bounded_and_the_newest_are_told() -> None:
    log = CutLog()
    node, segment = SimpleNamespace(id=3), SimpleNamespace(frame=SimpleNamespace(image_hash=1, start=0), num_live=5)
    for _ in range(MOST_CUTS + 10):
        log.pruned(node, segment, 2)  # type: ignore[arg-type]
    assert log.number == MOST_CUTS + 10 and len(log.after(0, 10**6)) == MOST_CUTS
    assert [cut[0] for cut in log.after(log.number - 3, 2)] == [log.number - 1, log.number]
