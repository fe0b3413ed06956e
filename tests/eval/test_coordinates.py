"""Smart-resize arithmetic by hand, and coordinates there and back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize as qwen2vl_smart_resize

from star_kv_sglang.tools.eval.coordinates import (
    CoordinateSpace,
    extent,
    from_relative,
    to_relative,
)
from star_kv_sglang.tools.resize import ImageSizeError, PixelBounds, smart_resize

BOUNDS = PixelBounds()


@pytest.mark.parametrize(
    ("size", "resized"),
    [
        # 1920 / 28 = 68.57 -> 69; 1080 / 28 = 38.57 -> 39
        pytest.param((1920, 1080), (1932, 1092), id="full-hd"),
        # 3840 / 28 = 137.14 -> 137; 2160 / 28 = 77.14 -> 77; 10,549 tokens are within 16,384
        pytest.param((3840, 2160), (3836, 2156), id="4k"),
        pytest.param((1932, 1092), (1932, 1092), id="multiple-stays"),
        # 42 / 28 = 1.5 -> 2 and 70 / 28 = 2.5 -> 2: halves go to the even multiple; too small then:
        # sqrt(78400 / (42 * 2800)) < 1 is not needed as 56 * 2800 = 156,800 >= 78,400
        pytest.param((42, 2800), (56, 2800), id="half-rounds-to-even-up"),
        pytest.param((70, 2800), (56, 2800), id="half-rounds-to-even-down"),
        # 100 x 100: sqrt(78400 / 10000) = 2.8 -> exactly 280 on each side
        pytest.param((100, 100), (280, 280), id="too-small-scales-up"),
        # 101 x 100: grow = sqrt(78400 / 10100) = 2.7861; 101 * 2.7861 = 281.4 -> ceil to 308; 278.6 -> 280
        pytest.param((101, 100), (308, 280), id="too-small-rounds-up"),
        # 5120 x 2880: 183 * 103 = 18,849 > 16,384; shrink = sqrt(14745600 / 12845056) = 15 / 14;
        # 5120 * 14 / 15 / 28 = 170.67 -> 170; 2880 * 14 / 15 / 28 = 96
        pytest.param((5120, 2880), (4760, 2688), id="5k-shrinks-and-rounds-down"),
        # 20 x 3920: the short side is at least one patch
        pytest.param((20, 3920), (28, 3920), id="thin"),
    ],
)
def test_smart_resize_by_hand(size: tuple[int, int], resized: tuple[int, int]) -> None:
    assert smart_resize(size, BOUNDS) == resized


@given(st.integers(1, 9000), st.integers(1, 9000))
def test_resized_sides_are_multiples_within_the_bounds(width: int, height: int) -> None:
    if max(width, height) / min(width, height) > 200:
        with pytest.raises(ImageSizeError):
            smart_resize((width, height), BOUNDS)
        return
    new_width, new_height = smart_resize((width, height), BOUNDS)
    assert new_width % 28 == 0 and new_height % 28 == 0
    assert BOUNDS.min_pixels <= new_width * new_height <= BOUNDS.max_pixels


@given(st.integers(28, 9000), st.integers(28, 9000), st.sampled_from([(28, 100 * 784), (32, 64 * 1024)]))
def test_the_same_as_the_processor_s_own_arithmetic(width: int, height: int, patches: tuple[int, int]) -> None:
    factor, least = patches
    most = 16384 * factor**2
    if max(width, height) / min(width, height) > 200:
        return
    expected = qwen2vl_smart_resize(height, width, factor=factor, min_pixels=least, max_pixels=most)
    assert smart_resize((width, height), PixelBounds(factor, least, most)) == (expected[1], expected[0])


@pytest.mark.parametrize("size", [(0, 100), (1, 201), (4000, 19)], ids=["empty", "1:201", "210:1"])
def test_sizes_that_the_processor_refuses(size: tuple[int, int]) -> None:
    with pytest.raises(ImageSizeError, match="differ at most 200 times"):
        smart_resize(size, BOUNDS)


@pytest.mark.parametrize(("low", "high"), [(28 * 28 - 1, 10**6), (10**6, 10**5)], ids=["below-one-patch", "crossed"])
def test_bounds_that_contradict(low: int, high: int) -> None:
    with pytest.raises(ImageSizeError, match="preprocessor_config"):
        PixelBounds(28, low, high)


def test_the_centre_of_the_resized_image_is_the_centre_of_the_screenshot() -> None:
    corner = extent(CoordinateSpace.RESIZED_PIXELS, (1920, 1080), BOUNDS)
    assert to_relative(966, 546, corner) == (0.5, 0.5)


def test_thousandths_do_not_depend_on_the_size() -> None:
    corner = extent(CoordinateSpace.THOUSANDTHS, (1920, 1080), BOUNDS)
    assert to_relative(250, 750, corner) == (0.25, 0.75)


@given(st.floats(0, 1), st.floats(0, 1), st.sampled_from(list(CoordinateSpace)))
def test_there_and_back_is_within_half_a_unit(x: float, y: float, space: CoordinateSpace) -> None:
    corner = extent(space, (1283, 721), BOUNDS)
    back = to_relative(*from_relative((x, y), corner), corner)
    assert abs(back[0] - x) <= 0.5001 / corner[0] and abs(back[1] - y) <= 0.5001 / corner[1]
