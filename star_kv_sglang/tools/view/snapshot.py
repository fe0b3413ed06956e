"""Snapshots of a tree, and what is new in one since the last."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from star_kv_sglang.introspection.protocol import NODE_FIELDS, VERSION
from star_kv_sglang.tools.view.errors import ViewError

Row = Sequence[Any]
"""A node: `protocol.NODE_FIELDS`, where ``idle_s`` became the second since 1970 at which a request used it last."""

ID, _IDLE = NODE_FIELDS.index("id"), NODE_FIELDS.index("idle_s")
_SAME_S = 2.0
"""Times of use that differ by less are the same one, read twice."""


def check(snapshot: Any, source: str) -> Mapping[str, Any]:
    """Make sure that an answer of ``/star_kv/tree`` can be read.

    Raises:
        ViewError: It comes from another version, or is no such answer.
    """
    if not isinstance(snapshot, Mapping) or "protocol" not in snapshot:
        raise ViewError(f"{source} answers, but not as star-kv does: is this the address of its server?")
    if snapshot["protocol"] != VERSION or list(snapshot.get("node_fields", ())) != list(NODE_FIELDS):
        raise ViewError(
            f"{source} runs star-kv {snapshot.get('star_kv', 'of an unknown version')}, whose tree is told in version "
            f"{snapshot['protocol']}; this star-kv reads version {VERSION}: use the star-kv that the server has"
        )
    return snapshot


class Differ:
    """Turns snapshots into records: the first one whole, then what is new in each.

    Attributes:
        rows: The newest state of each node, by its number.
    """

    def __init__(self) -> None:
        self.rows: dict[int, Row] = {}
        self.newest: Mapping[str, Any] = {}
        """The newest record without its nodes and cuts."""
        self._started: object = None
        self._cut = 0

    def record(self, snapshot: Mapping[str, Any]) -> dict[str, Any]:
        """What is new: ``nodes`` that came or changed, ``gone`` ones, ``cuts`` that are new, and all numbers."""
        is_new_server = snapshot["started"] != self._started
        if is_new_server:
            self.rows, self._cut, self._started = {}, 0, snapshot["started"]
        before, rows = self.rows, {}
        for node in snapshot["nodes"]:
            row = [*node[:_IDLE], round(snapshot["time"] - node[_IDLE]), *node[_IDLE + 1 :]]
            known = before.get(row[ID])
            rows[row[ID]] = known if known is not None and _is_same(known, row) else row
        self.rows = rows
        cuts = [cut for cut in snapshot["cuts"] if cut[0] > self._cut]
        self._cut = max((cut[0] for cut in cuts), default=self._cut)
        told = {key: value for key, value in snapshot.items() if key not in ("nodes", "cuts", "node_fields")}
        self.newest = {"type": "tree", **told}
        changed = [row for ident, row in rows.items() if row is not before.get(ident)]
        gone = [ident for ident in before if ident not in rows]
        return {**self.newest, "full": not before, "nodes": changed, "gone": gone, "cuts": cuts}

    def whole(self) -> dict[str, Any]:
        """The newest state as one record, for somebody who comes later."""
        return {**self.newest, "full": True, "nodes": list(self.rows.values()), "gone": [], "cuts": []}


def _is_same(known: Row, row: Row) -> bool:
    return all(
        abs(old - new) < _SAME_S if index == _IDLE else old == new
        for index, (old, new) in enumerate(zip(known, row, strict=True))
    )
