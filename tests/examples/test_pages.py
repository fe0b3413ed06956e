"""The second world: the same pages everywhere, widgets where their ground truth says, change from page to page."""

from __future__ import annotations

import hashlib
from random import Random
from typing import cast

import numpy as np
import pytest
from PIL import Image

from tinygui.pages.assets import (
    FACES,
    LETTER_CELL,
    LETTER_SIZES,
    NUM_TEXTURES,
    WORD_FACES,
    WORD_SIZES,
    WORDS,
    letter_mask,
    rounded_mask,
    shadow_mask,
    texture,
    word_mask,
)
from tinygui.pages.page import KINDS, Page, PageWidget
from tinygui.pages.paint import SHADES, render_page
from tinygui.trajectories import generate
from tinygui.world import COLOURS, LETTERS
from tinygui.worlds import PAGES, PANELS

SEEDS = range(40)


def pages_of(seed: int, count: int = 6) -> list[Page]:
    return cast(list[Page], PAGES.screens(Random(f"test {seed}"), count))


def test_pixels_of_a_seed_are_pinned() -> None:
    digest = hashlib.sha256()
    for page in pages_of(0) + pages_of(1):
        digest.update(render_page(page).tobytes())
    assert digest.hexdigest() == "a560128ff589ee542ee6c1873c4743e6e49dba9129b1ea9c3ccb8acb2eded87e"


@pytest.mark.parametrize("seed", SEEDS)
def test_widgets_are_on_the_page_apart_large_enough_and_of_one_name_each(seed: int) -> None:
    for page in pages_of(seed):
        assert 6 <= len(page.widgets) <= 12
        assert len({widget.label for widget in page.widgets}) == len(page.widgets)
        for number, widget in enumerate(page.widgets):
            x, y, width, height = widget.box
            assert x >= 0 and y >= 0 and x + width <= page.width and y + height <= page.height
            assert 32 <= width <= 76 and 28 <= height <= 40, widget
            for other in page.widgets[:number]:
                (a, b, c, d) = other.box
                assert x >= a + c or a >= x + width or y >= b + d or b >= y + height, (widget, other)


def test_about_55_percent_of_the_widgets_stay_and_a_third_of_the_others_move() -> None:
    stayed = moved = total = 0
    for seed in range(200):
        before, after = pages_of(seed, 2)
        kept = set(before.widgets) & set(after.widgets)
        labels = {widget.label for widget in after.widgets}
        stayed += len(kept)
        moved += sum(widget.label in labels for widget in before.widgets if widget not in kept)
        total += len(before.widgets)
    assert stayed / total == pytest.approx(0.55, abs=0.05)
    assert moved / (total - stayed) == pytest.approx(1 / 3, abs=0.07)


def test_a_widget_changes_pixels_only_around_its_box() -> None:
    page = pages_of(3)[0]
    bare = np.asarray(render_page(Page(page.width, page.height, page.layout, (), page.grain)))
    for kind in KINDS:
        widget = PageWidget((200, 120, 60, 34), "teal", "W", kind, 0, 0, 2)
        drawn = np.asarray(render_page(Page(page.width, page.height, page.layout, (widget,), page.grain)))
        rows, columns = np.nonzero((bare != drawn).any(axis=2))
        # A button's shadow reaches 6 px to the sides and 8 px down.
        assert rows.min() >= 114 and rows.max() < 162 and columns.min() >= 194 and columns.max() < 266, kind
        assert ((rows >= 120) & (rows < 154) & (columns >= 200) & (columns < 260)).sum() > 600, kind


def test_colours_keep_apart() -> None:
    for first, second in ((a, b) for a in COLOURS for b in COLOURS if a < b):
        for one in SHADES[first]:
            for other in SHADES[second]:
                assert sum(abs(p - q) for p, q in zip(one, other, strict=True)) >= 60, (first, second)


def test_masks_differ_and_fit() -> None:
    masks = {
        (mask.size, mask.tobytes())
        for letter in LETTERS
        for face in range(len(FACES))
        for size in range(len(LETTER_SIZES))
        if max((mask := letter_mask(letter, face, size)).size) < LETTER_CELL
    }
    assert len(masks) == len(LETTERS) * len(FACES) * len(LETTER_SIZES)
    for face in range(len(WORD_FACES)):
        for size in range(len(WORD_SIZES)):
            words = {word_mask(word, face, size).tobytes() for word in range(len(WORDS))}
            assert len(words) == len(WORDS)


def test_shapes_by_hand() -> None:
    assert np.asarray(rounded_mask(5, 3, 0)).tolist() == [[255] * 5] * 3
    disc = np.asarray(rounded_mask(8, 8, 4)).astype(int)
    assert (disc == disc.T).all() and (disc == disc[::-1]).all()
    assert disc.sum() / 255 == pytest.approx(np.pi * 16, rel=0.03)
    shadow = np.asarray(shadow_mask(20, 10))
    assert shadow.shape == (22, 32) and shadow[11, 16] == 233 and shadow[0, 0] == 1


def test_textures_are_no_flat_areas_and_differ() -> None:
    pictures = [np.asarray(texture(index)).astype(float) for index in range(NUM_TEXTURES)]
    assert all(picture.std() > 25 for picture in pictures)
    assert len({picture.tobytes() for picture in pictures}) == NUM_TEXTURES


def test_backgrounds_are_not_flat() -> None:
    # The share of 16 x 16 patches of one colour: most of a screen of panels, none of a page.
    def flat_share(image: Image.Image) -> float:
        patches = np.asarray(image).reshape(18, 16, 28, 16, 3).swapaxes(1, 2).reshape(504, 256, 3)
        return float((np.ptp(patches, axis=1).max(axis=1) == 0).mean())

    assert flat_share(render_page(pages_of(0)[0])) == 0
    assert flat_share(PANELS.render(PANELS.screens(Random("test 0"), 1)[0])) > 0.3


def test_trajectories_come_from_either_world() -> None:
    for world in (PANELS, PAGES):
        made = generate(5, num_turns=3, world=world)
        assert len(made.turns) == 3 and made == generate(5, num_turns=3, world=world)
    assert generate(5, world=PAGES).turns[0].widgets != generate(5, world=PANELS).turns[0].widgets
