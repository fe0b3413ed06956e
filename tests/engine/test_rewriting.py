"""What a request has when its branch's prompt stands for its own, and that all of it is undone."""

from __future__ import annotations

from array import array
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from star_kv_sglang.cache.alignment import Fit
from star_kv_sglang.cache.messages import Message
from star_kv_sglang.cache.segments import Frame
from star_kv_sglang.engine.records import RequestRecord
from star_kv_sglang.engine.rewriting import can_be_rewritten, rewrite
from star_kv_sglang.request_params import RequestParams

KEPT, NEW = Frame(6, 2, 2, 5), Frame(14, 2, 2, 6)
LEFT_OUT = Frame(4, 2, 3, 4)
FIT = Fit(
    left_out=(LEFT_OUT,),
    frames=(LEFT_OUT,),
    sent=3,
    held=12,
    num_steps=6,
    shifts=(),
    last=None,  # type: ignore[arg-type]
)
MAX_LEN = 60


def request(**fields: Any) -> tuple[Any, RequestRecord]:
    """A request of 20 tokens with two screenshots."""
    inputs = SimpleNamespace(
        mm_items=[SimpleNamespace(offsets=[span], is_image=lambda: True) for span in ((6, 9), (14, 17))],
        mrope_positions=torch.arange(20).repeat(3, 1),
        mrope_position_delta=torch.tensor([[-4]]),
        mrope_position_delta_repeated_cache=torch.zeros(1),
        token_modalities=None,
    )
    values: dict[str, Any] = {
        "origin_input_ids": array("q", range(100, 120)), "full_untruncated_fill_ids": array("q", range(100, 120)),
        "multimodal_inputs": inputs, "logprob_start_len": -1, "session": None, "input_embeds": None,
        "positional_embed_overrides": None, "finished": lambda: False,
        "sampling_params": SimpleNamespace(max_new_tokens=8),
    }  # fmt: skip
    return SimpleNamespace(**{**values, **fields}), RequestRecord((KEPT, NEW), RequestParams())


def rewritten(req: Any, record: RequestRecord) -> Any:
    return rewrite(req, record, FIT, array("q", range(12)), max_len=MAX_LEN)


def test_a_prompt_gets_its_branchs_ids_places_and_positions_and_its_own_again() -> None:
    req, record = request(logprob_start_len=19)
    assert can_be_rewritten(req)
    sent = rewritten(req, record)
    assert sent is not None
    assert req.origin_input_ids == array("q", [*range(12), *range(103, 120)])
    assert [item.offsets for item in req.multimodal_inputs.mm_items] == [[(15, 18)], [(23, 26)]]
    assert [frame.start for frame in record.frames] == [4, 15, 23]
    assert record.left_out == {4}
    positions = req.multimodal_inputs.mrope_positions
    assert positions.shape == (3, 29)
    assert positions[:, 12:].tolist() == [list(range(9, 26))] * 3
    # The answer goes on behind the prompt: 20 - 4 in the prompt, six steps farther in the branch.
    assert int(req.multimodal_inputs.mrope_position_delta) + 29 == 20 - 4 + 6
    assert req.logprob_start_len == 28
    sent.put_back(req, record)
    assert req.origin_input_ids == array("q", range(100, 120))
    assert [item.offsets for item in req.multimodal_inputs.mm_items] == [[(6, 9)], [(14, 17)]]
    assert (record.frames, record.left_out) == ((KEPT, NEW), frozenset())
    assert int(req.multimodal_inputs.mrope_position_delta) == -4
    assert (req.logprob_start_len, req.sampling_params.max_new_tokens) == (19, 8)


def test_screenshots_before_the_newest_that_is_missing_are_moved_each_by_its_own() -> None:
    req, record = request()
    fit = Fit(
        left_out=(LEFT_OUT,), frames=(Frame(7, 2, 2, 5), LEFT_OUT), sent=11, held=30, num_steps=15,
        shifts=((Message(5, 11, b"", (KEPT,)), 1),), last=None,  # type: ignore[arg-type]
    )  # fmt: skip
    assert rewrite(req, record, fit, array("q", range(30)), max_len=MAX_LEN) is not None
    assert [item.offsets for item in req.multimodal_inputs.mm_items] == [[(7, 10)], [(33, 36)]]


@pytest.mark.parametrize(
    ("start", "max_new_tokens", "left"),
    [(-1, 31, 31), (-1, 32, None), (-1, 40, 31), (3, 8, 8), (2, 8, None), (0, 8, None)],
    ids=["fits", "no room", "all that is left", "told", "told before", "all told"],
)
def test_an_answer_keeps_its_length_and_what_is_told_its_places(
    start: int, max_new_tokens: int, left: int | None
) -> None:
    req, record = request(logprob_start_len=start, sampling_params=SimpleNamespace(max_new_tokens=max_new_tokens))
    assert (rewritten(req, record) is None) is (left is None)
    assert req.sampling_params.max_new_tokens == (max_new_tokens if left is None else left)
    assert len(req.origin_input_ids) == (20 if left is None else 29)


@pytest.mark.parametrize(
    "fields",
    [
        {"multimodal_inputs": None},
        {"session": object()},
        {"input_embeds": [[0.0]]},
        {"positional_embed_overrides": object()},
        {"finished": lambda: True},
    ],
)
def test_what_has_positions_of_another_kind_stays_as_it_is(fields: dict[str, Any]) -> None:
    assert not can_be_rewritten(request(**fields)[0])
