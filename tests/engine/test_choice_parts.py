"""Equal shares of which a part is sure."""

from __future__ import annotations

import pytest

from star_kv_sglang.cache.segments import Frame, Segment
from star_kv_sglang.engine.choice import part_of_shares

FRAME = Frame(0, 10, 10, image_hash=1)


@pytest.mark.parametrize(
    ("num_live", "num_apart", "quota", "page_size", "sure"),
    [
        pytest.param(100, 0, 21, 1, 15, id="rounded_down"),
        pytest.param(100, 0, 24, 4, 16, id="whole_pages"),
        pytest.param(20, 0, 20, 1, 20, id="holds_no_more_than_its_share"),
        pytest.param(60, 4, 20, 4, 16, id="beside_the_budget"),
    ],
)
def test_a_part_of_the_share_is_sure(num_live: int, num_apart: int, quota: int, page_size: int, sure: int) -> None:
    segment = Segment(FRAME, 0, 100, 0, 100, num_live, num_apart=num_apart)
    assert part_of_shares([segment], quota, 0.75, page_size) == [sure]
