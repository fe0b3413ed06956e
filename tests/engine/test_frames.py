"""A screenshot is what its image items say only where the prompt's ids say it too."""

from __future__ import annotations

from array import array
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from star_kv_sglang.cache.segments import Frame
from star_kv_sglang.engine.frames import MOST_TOKENS, frames_of_request

PAD, OTHER = 1_000_001, 1_000_002


def image(first: int, last: int, pad: int, grid: tuple[int, int, int]) -> Any:
    return SimpleNamespace(
        offsets=[(first, last)],
        pad_value=pad,
        hash=pad,
        model_specific_data={"image_grid_thw": torch.tensor([grid])},
        is_image=lambda: True,
    )


def request(ids: list[int], *items: Any) -> Any:
    return SimpleNamespace(
        rid="r", origin_input_ids=array("q", ids), multimodal_inputs=SimpleNamespace(mm_items=list(items))
    )


def test_a_screenshot_lies_where_the_ids_are_its_pad_value() -> None:
    ids = [1, *[PAD] * 6, 2, *[OTHER] * 4, 3]
    found = frames_of_request(request(ids, image(8, 11, OTHER, (1, 4, 4)), image(1, 6, PAD, (1, 4, 6))), 2)
    assert found == (Frame(1, 2, 3, PAD), Frame(8, 2, 2, OTHER))


@pytest.mark.parametrize(
    "ids",
    [
        pytest.param([1, 5, 6, 7, 8, 2], id="text_where_it_was"),
        pytest.param([1, PAD, PAD, PAD, 7, 2], id="text_in_its_end"),
        pytest.param([1, OTHER, OTHER, OTHER, OTHER, 2], id="another_image_where_it_was"),
        pytest.param([1, PAD, PAD], id="a_shorter_prompt"),
    ],
)
def test_an_item_that_a_rewound_session_left_behind_is_no_screenshot(ids: list[int]) -> None:
    """A session that goes back (``offset``) keeps its image items and writes other ids over them."""
    assert frames_of_request(request(ids, image(1, 4, PAD, (1, 4, 4))), 2) == ()


def test_a_screenshot_with_more_tokens_than_an_offset_can_tell_is_kept_whole() -> None:
    """Offsets are 16 bit: token 32,768 would be taken for one before the first."""
    rows = MOST_TOKENS + 1
    ids = [PAD] * rows
    assert frames_of_request(request(ids, image(0, rows - 1, PAD, (1, 2 * rows, 2))), 2) == ()
    assert len(frames_of_request(request(ids[1:], image(0, rows - 2, PAD, (1, 2 * rows - 2, 2))), 2)) == 1
