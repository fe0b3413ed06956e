"""How many tokens of a screenshot are left, by how many screenshots ago it was shown: from the policy's trace."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

Kept = dict[int, tuple[int, int]]
"""Tokens that are left, and tokens that there were, by screenshots ago."""


def kept_by_age(folder: Path) -> Kept:
    """What is left of each screenshot after a conversation's last traced prune, summed over conversations.

    A later prune of the same screenshot counts instead of an earlier one. Only a conversation's longest prompt counts:
    the others' screenshots are the same ones, younger.

    Args:
        folder: what the policy wrote; requests are named ``conversation@place``, a stateless one is its own
            conversation.
    """
    left: dict[str, dict[int, tuple[int, int]]] = {}
    longest: dict[str, int] = {}
    for file in sorted(folder.glob("*.npz")):
        with np.load(file) as content:
            meta = json.loads(content["meta"].tobytes())
            num_kept = int(content["kept"].shape[1])
        conversation = str(meta["rid"]).partition("@")[0]
        rows, cols = meta["grid"]
        left.setdefault(conversation, {})[int(meta["frame_index"])] = (num_kept, rows * cols)
        longest[conversation] = max(longest.get(conversation, 0), int(meta["num_frames"]))
    most = max(longest.values(), default=0)
    kept: dict[int, list[int]] = {}
    for conversation, frames in left.items():
        if longest[conversation] == most:
            for index, (num_kept, total) in frames.items():
                sums = kept.setdefault(most - 1 - index, [0, 0])
                sums[0] += num_kept
                sums[1] += total
    return {age: (sums[0], sums[1]) for age, sums in sorted(kept.items())}
