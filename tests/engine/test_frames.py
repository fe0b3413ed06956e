"""A screenshot is what its image items say only where the prompt's ids say it too."""

from __future__ import annotations

from array import array
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sglang.srt.managers.schedule_batch import Modality, MultimodalDataItem

from star_kv_sglang.cache.segments import Frame
from star_kv_sglang.engine.frames import MOST_TOKENS, frames_of_request

CAT, DOG = 11, 12
"""Contents of two images, as their hashes."""


def image(first: int, last: int, content: int, grid: tuple[int, int, int]) -> MultimodalDataItem:
    item = MultimodalDataItem(
        modality=Modality.IMAGE,
        offsets=[(first, last)],
        model_specific_data={"image_grid_thw": torch.tensor([grid])},
    )
    item.set_hash(content)
    return item


def padding(content: int, length: int) -> list[int]:
    """The ids that SGLang writes for an image: they differ from position to position."""
    return image(0, 0, content, (1, 2, 2)).padding_sequence(length)


def request(ids: list[int], *items: Any) -> Any:
    return SimpleNamespace(
        rid="r", origin_input_ids=array("q", ids), multimodal_inputs=SimpleNamespace(mm_items=list(items))
    )


def test_a_screenshot_lies_where_the_ids_are_the_ones_of_its_content() -> None:
    ids = [1, *padding(CAT, 6), 2, *padding(DOG, 4), 3]
    found = frames_of_request(request(ids, image(8, 11, DOG, (1, 4, 4)), image(1, 6, CAT, (1, 4, 6))), 2)
    assert found == (Frame(1, 2, 3, CAT), Frame(8, 2, 2, DOG))


@pytest.mark.parametrize(
    "ids",
    [
        pytest.param([1, 5, 6, 7, 8, 2], id="text_where_it_was"),
        pytest.param([1, *padding(CAT, 3), 7, 2], id="text_in_its_end"),
        pytest.param([1, *padding(DOG, 4), 2], id="another_image_where_it_was"),
        pytest.param([1, *padding(CAT, 2)], id="a_shorter_prompt"),
    ],
)
def test_an_item_that_a_rewound_session_left_behind_is_no_screenshot(ids: list[int]) -> None:
    """A session that goes back (``offset``) keeps its image items and writes other ids over them."""
    assert frames_of_request(request(ids, image(1, 4, CAT, (1, 4, 4))), 2) == ()


def test_a_screenshot_with_more_tokens_than_an_offset_can_tell_is_kept_whole() -> None:
    """Offsets are 16 bit: token 32,768 would be taken for one before the first."""
    most = request(padding(CAT, MOST_TOKENS), image(0, MOST_TOKENS - 1, CAT, (1, 2 * MOST_TOKENS, 2)))
    more = request(padding(CAT, MOST_TOKENS + 1), image(0, MOST_TOKENS, CAT, (1, 2 * MOST_TOKENS + 2, 2)))
    assert len(frames_of_request(most, 2)) == 1
    assert frames_of_request(more, 2) == ()
