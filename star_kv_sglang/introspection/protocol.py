"""What the process that answers clients and the scheduler say to each other, and to who looks at the tree.

A question travels in SGLang's own request for the scheduler's state, in the field for a request's name: SGLang hands it
on and reads nothing in it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

VERSION: Final = 1
"""Of what ``/star_kv/tree`` answers; it rises when a reader of the old answer would misread the new one."""
ANSWER: Final = "star_kv_introspection"
"""Key of the scheduler's answer in SGLang's state."""

OFF, TREE, CONTENT = "off", "tree", "content"
MODES: Final = (OFF, TREE, CONTENT)
"""Of ``--kv-introspection``: nothing; sizes and places; also what clients sent."""

NODE_FIELDS: Final = ("id", "parent", "start", "length", "live", "flags", "cuts", "users", "idle_s", "frames")
"""One node of a snapshot is a list in this order. ``parent`` is 0 for a child of the root. ``idle_s``: seconds since a
request used it."""
FRAME_FIELDS: Final = ("image", "start", "rows", "cols", "first", "end", "live")
"""One screenshot in ``frames``: its place in the prompt, its token grid, and of its part in this node the positions
[first, end) and how many of them are live."""
SHARED, PINNED, LOCKED, PENDING = 1, 2, 4, 8
"""Bits of ``flags``: several branches can use it; kept whole because a request asked for it; a request holds it; a
finished branch ends here and may go on."""
CUT_FIELDS: Final = ("number", "time", "reason", "node", "image", "start", "freed", "left")
"""One cut of a snapshot: seconds since 1970, why, where, slots that were freed and slots that are left. ``image`` is
None where a whole leaf went."""

PROMPT, TOKEN_BUDGET, SHORT_POOL = "prompt", "token_budget", "short_pool"
REASONS: Final = (PROMPT, TOKEN_BUDGET, SHORT_POOL)
"""Why something was cut: the policy's choice behind a prompt; the tree-wide budget; the pool ran short."""

_PREFIX: Final = "star_kv?"


def image_key(image_hash: int) -> str:
    """What both processes call a screenshot: SGLang's hash of it, in 64 bits."""
    return f"{image_hash & 0xFFFFFFFFFFFFFFFF:x}"


def question(**fields: Any) -> str:
    """A question as it travels."""
    return _PREFIX + json.dumps(fields)


def asked(name: str | None) -> Mapping[str, Any] | None:
    """The question in a request's name; None where it is none of ours."""
    if name is None or not name.startswith(_PREFIX):
        return None
    fields: Mapping[str, Any] = json.loads(name.removeprefix(_PREFIX))
    return fields
