"""What an answer has seen of what was pruned: remembered at each prune, told with the answer (``kv_return_kept``)."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from star_kv_sglang.cache.history import (
    HistoryError,
    Marks,
    RememberedPrune,
    SegmentHistory,
    first_after,
    marks_between,
)
from star_kv_sglang.engine.host_copy import HostCopy
from star_kv_sglang.kept_format import Indices, KeptFormatError, KeptPrune, encode, incomplete

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import Req
    from sglang.srt.mem_cache.radix_cache import TreeNode

    from star_kv_sglang.cache.radix_cache import StarRadixCache
    from star_kv_sglang.engine.compaction import Target

Path = Sequence["TreeNode"]
PruneKey = tuple[int, int]


def remember(tree: StarRadixCache, targets: Sequence[Target], kept: torch.Tensor) -> Callable[[], None] | None:
    """Begin to copy to the host what a prune will keep, where nodes remember it; nothing waits for the device.

    A segment that was pruned before anybody asked has no beginning, so that it is not remembered.

    Args:
        tree: The tree.
        targets: What will be pruned.
        kept: int32 [num_units, N], as ``prune_targets`` takes it.

    Returns:
        To be called when the prune is done; None where nothing is remembered.
    """
    if not tree.keeps_histories:
        return None
    wanted: list[tuple[Target, int]] = []
    start = 0
    for target in targets:
        extra = tree.extra(target.node)
        if extra.keeps_history and (not target.segment.sealed or target.segment.start in extra.histories):
            wanted.append((target, start))
        start += target.segment.num_live
    if not wanted:
        return None
    # Live tokens lie in the order of position, whatever each unit has lost: an index tells the token.
    chosen = [kept[:, start : start + target.num_keep] - start for target, start in wanted]
    copy = HostCopy.start(torch.cat(chosen, dim=1))
    return partial(_remember, tree, [target for target, _ in wanted], copy)


def _remember(tree: StarRadixCache, targets: Sequence[Target], copy: HostCopy) -> None:
    tree.prune_time += 1
    start = 0
    for target in targets:
        histories, segment = tree.extra(target.node).histories, target.segment
        history = histories.setdefault(segment.start, SegmentHistory(segment.core_len))
        end = start + target.num_keep
        read = partial(_read, copy, start, end)
        history.prunes.append(RememberedPrune(tree.prune_time, segment.num_live, target.num_keep, read))
        start = end


def _read(copy: HostCopy, start: int, end: int) -> Indices:
    kept: Indices = copy.wait()[:, start:end].numpy()
    return kept


@dataclass(frozen=True)
class Seen:
    """A prune that tokens of a request have seen.

    Attributes:
        start: First position that could be pruned.
        core_len: Positions that could be pruned.
        prune: What is remembered of it.
        after: First position whose token has seen it.
    """

    start: int
    core_len: int
    prune: RememberedPrune
    after: int

    @property
    def key(self) -> PruneKey:
        """Tells prunes apart: where it was, and when."""
        return self.start, self.prune.time


@dataclass(slots=True)
class Computed:
    """When a request has computed its own tokens since it has its row, and whether that can be told of its answer.

    Attributes:
        first: Position of the first of them that is not one of the tree's; None where it has no row.
        end: Position after the last that a prefill has computed.
        marks: When they were computed.
        doubt: Why what its answer has seen cannot be told; None where it can.
        first_after: Since when its prompt's tokens had seen each prune when the answer's first token was made of them;
            None where that is no other than what later ones find in the tree.
        told: What the part of its answer that was given before it was put back has seen, and the length up to there.
    """

    first: int | None = None
    end: int = 0
    marks: list[tuple[int, int]] = field(default_factory=list)
    doubt: str | None = None
    first_after: Mapping[PruneKey, int] | None = None
    told: tuple[Mapping[PruneKey, int], int] | None = None

    def begins(self, start: int, end: int, time: int) -> None:
        """A prefill computes positions [start, end)."""
        if self.first is None:
            self.first = start
        self._from_here_on(start, time)
        self.end = end

    def pruned(self, req: Req, time: int) -> None:
        """What is computed from here on sees a prune; no forward of the request is in flight."""
        # Nobody has computed the newest token; one that decodes among prefills has computed it and not said so.
        self._from_here_on(max(self.end, len(req.origin_input_ids) + len(req.output_ids) - 1), time)

    def seen(self, tree: StarRadixCache, path: Path) -> list[Seen]:
        """The prunes that a request's tokens have seen, segment after segment.

        Args:
            tree: The tree.
            path: Nodes from the root's child down to the one that the request locks.

        Raises:
            HistoryError: That is not known.
        """
        first = self.first or 0
        marks: list[tuple[int, int]] = []
        for node in path:
            start, end = tree.extra(node).start, min(tree.end_of(node), first)
            if start < end:
                marks += _marks_of(tree, node, end)
        marks += marks_between(self.marks, first, sys.maxsize)
        found = []
        for node in path:
            extra = tree.extra(node)
            for segment in extra.segments:
                history = extra.histories.get(segment.start)
                if history is None:
                    if segment.sealed:
                        raise HistoryError("it was pruned before a request of its conversation asked for what is kept")
                    continue
                for prune in history.prunes:
                    after = first_after(marks, prune.time)
                    if after is not None:
                        found.append(Seen(segment.core_start, history.core_len, prune, after))
        return found

    def stored(self, tree: StarRadixCache, path: Path, *, ends_prompt: bool, asks: bool) -> None:
        """A chunk is in the tree, and what follows sees the tree's tokens, pruned as they are.

        Where another request had stored the same tokens before, the tree keeps those: they may have seen other prunes
        than this request's own, of which its answer's first token was made.

        Args:
            tree: The tree; this prompt has not been pruned yet.
            path: Nodes from the root's child down to the end of the prompt, as far as it was computed.
            ends_prompt: The whole prompt was computed.
            asks: The request wants to be told what is kept.
        """
        own = self._seen_by_first_token(tree, path) if asks and ends_prompt else None
        self.first = min(tree.end_of(path[-1]), self.end) if path else self.first
        self._from_here_on(self.end, tree.prune_time)
        if own is None or self.doubt is not None:
            return
        try:
            now = {one.key: one.after for one in self.seen(tree, path) if one.after < self.end}
        except HistoryError as error:
            self.doubt = str(error)
            return
        if own != now:
            self.first_after = own
            if self.told is not None:
                self.doubt = "it was put back into the queue, and what was computed again has seen other prunes"

    def _seen_by_first_token(self, tree: StarRadixCache, path: Path) -> Mapping[PruneKey, int] | None:
        first = self.first or 0
        try:
            return {one.key: one.after for one in self.seen(tree, path) if one.start < first}
        except HistoryError as error:
            self.doubt = str(error)
            return None

    def _from_here_on(self, position: int, time: int) -> None:
        if not self.marks or self.marks[-1][1] != time:
            self.marks.append((position, time))

    def put_back(self, tree: StarRadixCache, path: Path, req: Req) -> None:
        """The request goes back to the queue; what its answer has seen so far must stay true of it.

        Args:
            tree: The tree.
            path: Nodes from the root's child down to the one that it locked.
            req: The request.
        """
        if req.output_ids and self.doubt is None:
            try:
                self._compare(seen := self.seen(tree, path))
                length = len(req.origin_input_ids) + len(req.output_ids) - 1
                self.told = {one.key: one.after for one in seen}, length
            except HistoryError as error:
                self.doubt = str(error)
        self.first, self.end = None, 0
        self.marks.clear()

    def _compare(self, seen: Sequence[Seen]) -> None:
        if self.told is None:
            return
        earlier, length = self.told
        now = {one.key: one.after for one in seen}
        same = all(now.get(key) == after for key, after in earlier.items())
        if not same or any(after < length for key, after in now.items() if key not in earlier):
            raise HistoryError("it was put back into the queue, and what was computed again has seen other prunes")

    def record(
        self,
        tree: StarRadixCache,
        path: Path,
        *,
        prunes: bool,
        num_layers: int,
        num_units: int,
        prompt_len: int,
        length: int,
    ) -> dict[str, Any]:
        """What is returned with an answer.

        Args:
            tree: The tree.
            path: Nodes from the root's child down to the end of the answer.
            prunes: Something is ever pruned.
            num_layers: Layers of the model.
            num_units: What chooses for itself: layers, or key heads of all layers.
            prompt_len: Tokens of the prompt.
            length: Tokens of prompt and answer.
        """
        if self.doubt is not None:
            return incomplete(self.doubt)
        try:
            seen = self.seen(tree, path) if prunes else []
            self._compare(seen)
            first_after = self.first_after or {}
            told = [
                KeptPrune(
                    one.start,
                    one.start + one.core_len,
                    one.after,
                    one.prune.num_kept,
                    one.prune.packed,
                    None if self.first_after is None else first_after.get(one.key, prompt_len),
                )
                # The newest token has asked nobody.
                for one in seen
                if one.after < length - 1 or one.key in first_after
            ]
        except (HistoryError, KeptFormatError) as error:
            return incomplete(str(error))
        return encode(
            told,
            num_layers=num_layers,
            units_per_layer=num_units // num_layers,
            prompt_len=prompt_len,
            length=length,
        )


def note_stored(tree: StarRadixCache, path: Path, computed: Computed, *, asks: bool) -> None:
    """Tell new nodes when their tokens were computed, and that they are to remember what is pruned of them.

    Args:
        tree: The tree.
        path: Nodes from the root's child down to the end of what a request has stored.
        computed: When the request has computed its tokens.
        asks: It wants to be told what is kept.
    """
    for node in reversed(path):
        extra = tree.extra(node)
        if extra.computed:
            break
        extra.computed = marks_between(computed.marks, extra.start, tree.end_of(node))
    if not asks:
        return
    tree.keeps_histories = True
    for node in reversed(path):
        extra = tree.extra(node)
        if extra.keeps_history:
            break
        extra.keeps_history = True


def _marks_of(tree: StarRadixCache, node: TreeNode, end: int) -> Marks:
    extra = tree.extra(node)
    marks = marks_between(extra.computed, extra.start, end)
    if not marks:
        raise HistoryError("a part of it was stored by a request of which nobody told when it ran")
    return marks
