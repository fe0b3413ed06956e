"""A request's prompt as its branch has it: what its client left out is put back, and taken out again."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from star_kv_sglang.cache.alignment import Fit
from star_kv_sglang.cache.segments import Frame

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import Req

    from star_kv_sglang.engine.records import RequestRecord

LEAST_SHARE_OF_ANSWER = 0.5
"""A client that asks for all that the context leaves gets at least so much of it, or is not recognised."""

Offsets = list[tuple[int, int]]


@dataclass(frozen=True)
class Sent:
    """A prompt as its client sent it.

    Attributes:
        ids: Its ids.
        frames: Its screenshots.
        offsets: First and last position of each screenshot, item by item.
        positions: M-RoPE's positions, int64 [3, length].
        position_delta: How much farther M-RoPE is behind the prompt than its length.
        logprob_start_len: From which position on log-probabilities are told.
        max_new_tokens: Most tokens of the answer.
    """

    ids: array[int]
    frames: tuple[Frame, ...]
    offsets: tuple[Offsets, ...]
    positions: torch.Tensor
    position_delta: torch.Tensor
    logprob_start_len: int
    max_new_tokens: int

    @classmethod
    def of(cls, req: Req, frames: tuple[Frame, ...]) -> Sent:
        """What a request has now."""
        inputs = req.multimodal_inputs
        return cls(
            ids=req.origin_input_ids,
            frames=frames,
            offsets=tuple(list(item.offsets) for item in inputs.mm_items),
            positions=inputs.mrope_positions,
            position_delta=inputs.mrope_position_delta,
            logprob_start_len=req.logprob_start_len,
            max_new_tokens=req.sampling_params.max_new_tokens,
        )

    def put_back(self, req: Req, record: RequestRecord) -> None:
        """Give the request its own prompt again."""
        record.left_out = frozenset()
        _set(req, record, self)


def can_be_rewritten(req: Req) -> bool:
    """Whether a request has nothing that is told by positions but what is known here: screenshots, and text."""
    inputs = req.multimodal_inputs
    return (
        inputs is not None
        and inputs.mrope_positions is not None
        and inputs.token_modalities is None
        and all(item.is_image() and item.offsets is not None for item in inputs.mm_items)
        and req.session is None
        and req.input_embeds is None
        and req.positional_embed_overrides is None
        and not req.finished()
    )


def rewrite(req: Req, record: RequestRecord, fit: Fit, held: array[int], *, max_len: int) -> Sent | None:
    """Let a request have the prompt that its branch would have if its client had left nothing out.

    Args:
        req: The request.
        record: Its record.
        fit: Where its prompt lies.
        held: Ids of the branch up to the last screenshot that was left out; becomes the prompt.
        max_len: Tokens of prompt and answer that the context has room for.

    Returns:
        The prompt as it was sent; None where it stays so: its answer, or what is to be told of it, does not allow it.
    """
    sent = Sent.of(req, record.frames)
    num_added = fit.held - fit.sent
    # Positions that the engine skips are not to be told.
    if 0 <= sent.logprob_start_len < fit.sent:
        return None
    # An image that is no screenshot to us, as one of too many tokens, has no place in the branch that is known.
    if sum(len(spans) for spans in sent.offsets) != len(sent.frames):
        return None
    room = max_len - len(sent.ids) - num_added
    asks_for_all = sent.max_new_tokens >= max_len - len(sent.ids)
    if room < (LEAST_SHARE_OF_ANSWER * sent.max_new_tokens if asks_for_all else sent.max_new_tokens):
        return None
    own = tuple(_moved(frame, num_added) for frame in sent.frames if frame.start >= fit.sent)
    held += sent.ids[fit.sent :]
    of_branch = Sent(
        ids=held,
        frames=fit.frames + own,
        offsets=tuple([_shifted(span, fit) for span in spans] for spans in sent.offsets),
        positions=_positions(sent, fit),
        position_delta=sent.position_delta + (fit.num_steps - num_added),
        logprob_start_len=sent.logprob_start_len + (num_added if sent.logprob_start_len >= 0 else 0),
        max_new_tokens=min(sent.max_new_tokens, room),
    )
    record.left_out = frozenset(frame.start for frame in fit.left_out)
    _set(req, record, of_branch)
    return sent


def _set(req: Req, record: RequestRecord, prompt: Sent) -> None:
    inputs = req.multimodal_inputs
    record.frames = prompt.frames
    req.origin_input_ids = prompt.ids
    req.full_untruncated_fill_ids = array("q")  # SGLang makes it anew
    for item, offsets in zip(inputs.mm_items, prompt.offsets, strict=True):
        item.offsets = offsets
    inputs.mrope_positions = prompt.positions
    inputs.mrope_position_delta = prompt.position_delta
    inputs.mrope_position_delta_repeated_cache = None
    req.logprob_start_len = prompt.logprob_start_len
    req.sampling_params.max_new_tokens = prompt.max_new_tokens


def _positions(sent: Sent, fit: Fit) -> torch.Tensor:
    """M-RoPE's positions of the branch, int64 [3, length]; those up to the last left-out screenshot are never used."""
    behind = sent.positions[:, fit.sent :]
    positions = behind.new_empty((3, fit.held + behind.shape[1]))
    torch.add(behind, fit.num_steps, out=positions[:, fit.held :])
    return positions


def _moved(frame: Frame, by: int) -> Frame:
    return Frame(frame.start + by, frame.rows, frame.cols, frame.image_hash)


def _shifted(span: Sequence[int], fit: Fit) -> tuple[int, int]:
    """First and last position of a screenshot in the branch."""
    first, last = span
    by = fit.held - fit.sent
    if first < fit.sent:
        by = next(shift for message, shift in fit.shifts if message.start <= first < message.end)
    return first + by, last + by
