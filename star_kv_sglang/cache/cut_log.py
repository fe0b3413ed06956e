"""What was cut lately, where and why: for who looks at the tree, and kept only where somebody may look."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from star_kv_sglang.introspection.protocol import PROMPT, SHORT_POOL

if TYPE_CHECKING:
    from sglang.srt.mem_cache.radix_cache import TreeNode

    from star_kv_sglang.cache.segments import Segment

MOST_CUTS = 4_096
"""That are remembered. A step of the tree-wide budget makes up to 512 at once."""


class CutLog:
    """The newest cuts; a rising number tells which of them somebody has not seen."""

    def __init__(self) -> None:
        self._cuts: deque[tuple[Any, ...]] = deque(maxlen=MOST_CUTS)
        self._reason: str | None = None
        self.number = 0
        """Of the newest cut, from 1."""

    @contextmanager
    def because(self, reason: str) -> Iterator[None]:
        """What is cut meanwhile is cut for this reason; without one, a prune is a prompt's and a drop the pool's."""
        before, self._reason = self._reason, reason
        try:
            yield
        finally:
            self._reason = before

    def pruned(self, node: TreeNode, segment: Segment, num_keep: int) -> None:
        """A segment is about to keep ``num_keep`` live tokens of its core."""
        frame = segment.frame
        self._note(self._reason or PROMPT, node, frame.image_hash, frame.start, segment.num_live - num_keep, num_keep)

    def dropped(self, node: TreeNode, num_live: int) -> None:
        """A leaf is about to go, with all its slots."""
        self._note(self._reason or SHORT_POOL, node, None, None, num_live, 0)

    def _note(self, reason: str, node: TreeNode, *where: Any) -> None:
        self.number += 1
        self._cuts.append((self.number, time.time(), reason, node.id, *where))

    def after(self, number: int, most: int) -> list[tuple[Any, ...]]:
        """The newest ``most`` cuts behind cut ``number``, in order; each has `protocol.CUT_FIELDS`."""
        found: list[tuple[Any, ...]] = []
        for cut in reversed(self._cuts):
            if cut[0] <= number or len(found) == most:
                break
            found.append(cut)
        return found[::-1]


@contextmanager
def because(log: CutLog | None, reason: str) -> Iterator[None]:
    """`CutLog.because`, where there is a log."""
    if log is None:
        yield
        return
    with log.because(reason):
        yield
