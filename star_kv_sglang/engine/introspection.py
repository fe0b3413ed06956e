"""Answers what somebody who looks at the tree asks. Nothing is computed before it is asked for."""

from __future__ import annotations

import base64
import time
from collections.abc import Mapping
from dataclasses import asdict
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from star_kv_sglang.engine.context import EngineContext
from star_kv_sglang.engine.stats import tree_sizes
from star_kv_sglang.engine.tree_walk import TreeWalk
from star_kv_sglang.introspection.protocol import CONTENT

if TYPE_CHECKING:
    from sglang.srt.mem_cache.radix_cache import TreeNode

MOST_CUTS = 512
"""In one answer."""
MOST_TEXT_TOKENS = 4_096
"""Of a prompt, its newest ones."""


class Introspection:
    """Answers questions about the tree, each in a bounded time.

    Args:
        context: What the engine's parts share.
    """

    def __init__(self, context: EngineContext) -> None:
        self._context = context
        self._tree = context.tree
        self._walk: TreeWalk | None = None

    def answer(self, question: Mapping[str, Any]) -> dict[str, Any]:
        """What SGLang carries back, all of it numbers, words and lists.

        Args:
            question: ``ask`` says what: "walk" begins a walk through the tree and "piece" goes on with it; "frame" is
                what each layer keeps of a screenshot, "text" the token ids of a prompt, if the server shows these.
        """
        started = time.perf_counter()
        ask = question["ask"]
        if ask == "walk":
            self._walk = TreeWalk(self._tree)
            told = {**self._totals(), "cuts": self._cuts(question["cuts_after"]), **self._piece()}
        elif ask == "piece":
            told = self._piece()
        else:
            node = self._tree.find(question["node"])
            if node is None:
                told = {"gone": True}
            elif ask == "frame":
                told = self._frame(node, question["start"])
            else:
                told = self._text(node)
        return {**told, "spent_us": round((time.perf_counter() - started) * 1e6)}

    def _totals(self) -> dict[str, Any]:
        tree, config, counters = self._tree, self._context.config, self._context.counters
        allocator = tree.token_to_kv_pool_allocator
        return {
            "policy": {"name": config.policy, "budget": config.budget, "token_budget": config.token_budget},
            "num_nodes": tree.num_nodes,
            "totals": {
                "pool_tokens": allocator.size,
                "used_pool_tokens": allocator.size - allocator.available_size(),
                **tree_sizes(tree, counters),
                **asdict(counters),
            },
        }

    def _cuts(self, after: int) -> list[Any]:
        log = self._tree.cut_log
        return [] if log is None else log.after(after, MOST_CUTS)

    def _piece(self) -> dict[str, Any]:
        walk = self._walk
        if walk is None:
            return {"gone": True}
        nodes = walk.piece()
        told = {"nodes": nodes, "is_over": walk.is_over, "is_torn": walk.is_torn}
        if walk.is_over:
            self._walk = None
        return told

    def _frame(self, last: TreeNode, start: int) -> dict[str, Any]:
        """Which tokens of a screenshot each layer, or each key head of a layer, keeps on the path to a node.

        Waits for the device where the screenshot was pruned, as nothing else here does.
        """
        offsets = self._context.parts.pools.side.frame_offsets
        num_units, num_layers = offsets.shape[0], len(self._context.parts.pools.keys)
        kept: np.ndarray[Any, np.dtype[np.bool_]] | None = None
        for node in self._tree.path(last):
            extra = self._tree.extra(node)
            for segment in extra.segments:
                frame = segment.frame
                if frame.start != start:
                    continue
                if kept is None:
                    kept = np.zeros((num_units, frame.rows * frame.cols), np.bool_)
                    shape = frame.rows, frame.cols
                whole = slice(segment.start - start, segment.end - start)
                kept[:, whole] = True
                if segment.num_holes:
                    kept[:, segment.core_start - start : segment.core_end - start] = False
                    slots = extra.core_slots(node.value, segment)
                    # Every slot of a pruned core has its place: what is told nothing is not labelled a segment.
                    places = offsets[:, slots].to(torch.int64).cpu().numpy()
                    np.put_along_axis(kept, places, True, axis=1)
        if kept is None:
            return {"gone": True}
        return {
            "rows": shape[0],
            "cols": shape[1],
            "units": num_units,
            "units_per_layer": num_units // num_layers,
            "kept": base64.b64encode(np.packbits(kept, axis=1).tobytes()).decode("ascii"),
        }

    def _text(self, last: TreeNode) -> dict[str, Any]:
        """Token ids from the root to a node, in runs; None stands for a screenshot."""
        if self._context.config.introspection != CONTENT:
            return {"refused": True}
        room, runs = MOST_TEXT_TOKENS, list[list[int] | None]()
        for node in reversed(self._tree.path(last)):
            if room <= 0:
                break
            extra = self._tree.extra(node)
            end = extra.start + len(node.key)
            for segment in (*reversed(extra.segments), None):
                begin = extra.start if segment is None else segment.end
                first = max(begin, end - room)
                if end > first:
                    ids = list(islice(node.key.token_ids, first - extra.start, end - extra.start))
                    runs.append(ids + (runs.pop() or []) if runs and runs[-1] is not None else ids)
                    room -= end - first
                if segment is not None:
                    if not runs or runs[-1] is not None:
                        runs.append(None)
                    end = segment.start
        return {"runs": runs[::-1], "is_cut": room <= 0}
