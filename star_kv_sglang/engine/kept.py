"""What an answer has seen of what was pruned: remembered at each prune, told with the answer (``kv_return_kept``)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from star_kv_sglang.cache.history import (
    HistoryError,
    Marks,
    Offsets,
    RememberedPrune,
    SegmentHistory,
    first_after,
    marks_between,
)
from star_kv_sglang.engine.host_copy import HostCopy
from star_kv_sglang.kept_format import KeptPrune, encode, incomplete

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import Req
    from sglang.srt.mem_cache.radix_cache import TreeNode

    from star_kv_sglang.cache.radix_cache import StarRadixCache
    from star_kv_sglang.cache.side_pools import SidePools
    from star_kv_sglang.engine.compaction import Target

Path = Sequence["TreeNode"]


def remember(
    tree: StarRadixCache, targets: Sequence[Target], slots: torch.Tensor, kept: torch.Tensor, side: SidePools
) -> Callable[[], None] | None:
    """Begin to copy to the host what a prune will keep, where nodes remember it; nothing waits for the device.

    A segment that was pruned before anybody asked has no beginning, so that it is not remembered.

    Args:
        tree: The tree.
        targets: What will be pruned.
        slots: int64 [N], live slots of the targets, one after the other; no token has moved yet.
        kept: int32 [num_units, N], as ``prune_targets`` takes it.
        side: Side pools.

    Returns:
        To be called when the prune is done; None where nothing is remembered.
    """
    if not tree.keeps_histories:
        return None
    wanted: list[tuple[Target, slice]] = []
    start = 0
    for target in targets:
        extra = tree.extra(target.node)
        if extra.keeps_history and (not target.segment.sealed or target.segment.start in extra.histories):
            wanted.append((target, slice(start, start + target.num_keep)))
        start += target.segment.num_live
    if not wanted:
        return None
    chosen = torch.cat([kept[:, span] for _, span in wanted], dim=1).long()
    copy = HostCopy.start(side.frame_offsets[:, slots].gather(1, chosen))
    return partial(_remember, tree, [target for target, _ in wanted], copy)


def _remember(tree: StarRadixCache, targets: Sequence[Target], copy: HostCopy) -> None:
    tree.prune_time += 1
    start = 0
    for target in targets:
        histories, segment = tree.extra(target.node).histories, target.segment
        history = histories.get(segment.start)
        if history is None:
            first = segment.core_start - segment.frame.start
            history = histories[segment.start] = SegmentHistory(first, segment.core_len)
        end = start + target.num_keep
        history.prunes.append(RememberedPrune(tree.prune_time, target.num_keep, partial(_read, copy, start, end)))
        start = end


def _read(copy: HostCopy, start: int, end: int) -> Offsets:
    offsets: Offsets = copy.wait()[:, start:end].numpy()
    return offsets


@dataclass(frozen=True)
class Seen:
    """A prune that tokens of a request have seen.

    Attributes:
        start: First position that could be pruned.
        history: Of the segment.
        index: Of the prune in it.
        after: First position whose token has seen it.
    """

    start: int
    history: SegmentHistory
    index: int
    after: int

    @property
    def key(self) -> tuple[int, int, int]:
        """Tells prunes apart, and who has seen them."""
        return self.start, self.history.prunes[self.index].time, self.after


@dataclass(slots=True)
class Computed:
    """When a request has computed its own tokens since it has its row, and whether that can be told of its answer.

    Attributes:
        first: Position of the first of them; None where it has no row.
        end: Position after the last that a prefill has computed.
        marks: When they were computed.
        doubt: Why what its answer has seen cannot be told; None where it can.
        told: What the part of its answer that was given before it was put back has seen, and the length up to there.
    """

    first: int | None = None
    end: int = 0
    marks: list[tuple[int, int]] = field(default_factory=list)
    doubt: str | None = None
    told: tuple[frozenset[tuple[int, int, int]], int] | None = None

    def begins(self, start: int, end: int, time: int) -> None:
        """A prefill computes positions [start, end)."""
        if self.first is None:
            self.first = start
        if not self.marks or self.marks[-1][1] != time:
            self.marks.append((start, time))
        self.end = end

    def pruned(self, req: Req, time: int) -> None:
        """What is computed from here on sees a prune; no forward of the request is in flight."""
        # Nobody has computed the newest token; one that decodes among prefills has computed it and not said so.
        position = max(self.end, len(req.origin_input_ids) + len(req.output_ids) - 1)
        if not self.marks or self.marks[-1][1] != time:
            self.marks.append((position, time))

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
        marks += self.marks
        found = []
        for node in path:
            extra = tree.extra(node)
            for segment in extra.segments:
                history = extra.histories.get(segment.start)
                if history is None:
                    if segment.sealed:
                        raise HistoryError("it was pruned before a request of its conversation asked for what is kept")
                    continue
                for index, prune in enumerate(history.prunes):
                    after = first_after(marks, prune.time)
                    if after is not None:
                        found.append(Seen(segment.core_start, history, index, after))
        return found

    def check_stored(self, tree: StarRadixCache, path: Path) -> None:
        """Doubt where the tree holds tokens of another request in place of these, which had seen other prunes.

        Args:
            tree: The tree; nothing of what was just stored has been pruned.
            path: Nodes from the root's child down to the end of the prompt.
        """
        first, own = self.first or 0, self.marks[0][1] if self.marks else 0
        histories = [entry for node in path for entry in tree.extra(node).histories.items()]
        newest = max((prune.time for _, history in histories for prune in history.prunes), default=0)
        times = [time for node in path for at, time in tree.extra(node).computed if at >= first]
        is_own = newest <= own and all(start < first for start, _ in histories) and min(times, default=own) >= newest
        if not is_own:
            self.doubt = "another request had stored the same tokens meanwhile, which had seen other prunes"

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
                self.told = frozenset(one.key for one in seen), len(req.origin_input_ids) + len(req.output_ids) - 1
            except HistoryError as error:
                self.doubt = str(error)
        self.first, self.end = None, 0
        self.marks.clear()

    def _compare(self, seen: Sequence[Seen]) -> None:
        if self.told is None:
            return
        earlier, length = self.told
        keys = {one.key for one in seen}
        if earlier - keys or any(after < length for _, _, after in keys - earlier):
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
            # The newest token has asked nobody.
            told = [
                KeptPrune(
                    one.start,
                    one.start + one.history.core_len,
                    one.after,
                    one.history.prunes[one.index].num_kept,
                    one.history.packed(one.index),
                )
                for one in seen
                if one.after < length - 1
            ]
        except HistoryError as error:
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
