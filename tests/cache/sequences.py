"""Token sequences of the tree tests: a screenshot is a run of one negative token, which tells its length."""

from __future__ import annotations

from array import array

from star_kv_sglang.cache.segments import Frame


def frame_length(token: int) -> int:
    """Tokens of the screenshot whose pad value is ``token``."""
    return (-token) % 97


def frames_in(tokens: array[int]) -> tuple[Frame, ...]:
    """The screenshots of a sequence, also of one that ends in the middle of the last."""
    frames, position = [], 0
    while position < len(tokens):
        if tokens[position] < 0:
            length = frame_length(tokens[position])
            frames.append(Frame(position, 3, length // 3, tokens[position]))
            position += length
        else:
            position += 1
    return tuple(frames)
