"""What a conversation consists of: messages, told apart by the token that begins each of them.

A client that keeps a window over its screenshots leaves whole screenshots out, so that two prompts of one branch differ
in whole messages. A message is known by its content: its ids as bytes, with hash and grid of a screenshot in the
place of its ids, which are many.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from star_kv_sglang.cache.segments import Frame

START_OF_MESSAGE = "<|im_start|>"
"""The token that begins every message, in the chat templates of all models with vision that are served."""
_ID_SIZE = array("q").itemsize


class Message(NamedTuple):
    """A complete message of a prompt: it ends where the next one begins.

    Attributes:
        start: Position of the token that begins it.
        end: Position of the token that begins the next one.
        content: Its ids and screenshots.
        frames: Its screenshots; none for a message of text alone.
    """

    start: int
    end: int
    content: bytes
    frames: tuple[Frame, ...] = ()


def num_saved_steps(frames: Iterable[Frame]) -> int:
    """How much less far than their tokens M-RoPE's positions advance over screenshots: by the longer side of each."""
    return sum(frame.rows * frame.cols - max(frame.rows, frame.cols) for frame in frames)


def messages_between(
    ids: array[int], frames: Sequence[Frame], start: int, end: int, *, start_token: int
) -> list[Message]:
    """The messages that begin at ``start`` or later and are known to be complete before ``end``.

    Args:
        ids: Of a prompt, of which the first ``end`` are looked at.
        frames: All screenshots of it, in order.
        start: Where a message begins.
        end: The token that begins the message behind the last one lies before it.
        start_token: The token that begins every message.
    """
    bounds = np.frombuffer(ids, dtype=np.int64)[start:end] == start_token
    bounds[:1] = True
    starts = (np.flatnonzero(bounds) + start).tolist()
    left = iter(frame for frame in frames if frame.start >= start)
    frame = next(left, None)
    found = []
    with memoryview(ids) as view, view.cast("B") as ids_of:
        for first, following in pairwise(starts):
            shown = []
            while frame is not None and frame.start < following:
                shown.append(frame)
                frame = next(left, None)
            found.append(Message(first, following, _content(ids_of, first, following, shown), tuple(shown)))
    return found


def _content(view: memoryview, start: int, end: int, frames: Sequence[Frame]) -> bytes:
    if not frames:
        return bytes(view[start * _ID_SIZE : end * _ID_SIZE])
    parts: list[memoryview | bytes] = []
    position = start
    for frame in frames:
        parts += [
            view[position * _ID_SIZE : frame.start * _ID_SIZE],
            f"{frame.image_hash} {frame.rows} {frame.cols}".encode(),
        ]
        position = frame.end
    return b"".join([*parts, view[position * _ID_SIZE : end * _ID_SIZE]])
