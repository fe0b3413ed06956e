"""Traces, the drawing of kept tokens, and the page."""

from __future__ import annotations

import base64
import io
import json
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from star_kv_sglang.tools.report.kept import draw_kept
from star_kv_sglang.tools.report.page import GLOSSARY, Chart, Exchange, Line, Picture, render_page
from star_kv_sglang.tools.report.trace import TraceError, last_traces, live_tokens, load_trace, require_match
from star_kv_sglang.tools.rollout.summary import Row
from tests.star_kv import star_kv

META: dict[str, Any] = {
    "rid": "r1", "frame_index": 1, "num_frames": 3, "grid": [2, 3], "segment": [1, 5], "image_hash": 9, "budget": 0.5,
    "step": 0,
}  # fmt: skip
KEPT = [[1, 2], [1, 4]]


def write(path: Path, kept: object = KEPT, **changes: object) -> Path:
    meta = {**META, **changes}
    text = json.dumps({name: value for name, value in meta.items() if value is not None})
    np.savez(path, kept=np.array(kept, dtype=np.int32), meta=np.frombuffer(text.encode(), dtype=np.uint8))
    return path


class Page(HTMLParser):
    """Collects what the tests ask for, and fails on tags that do not match."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.images: list[str] = []
        self.links: list[str] = []
        self.cells: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag == "img":
            self.images.append(values["src"] or "")
        self.links += [value or "" for name, value in attrs if name == "href"]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("td", "th"):
            self.cells.append(data)


def test_kept_fraction_of_a_segment(tmp_path: Path) -> None:
    trace = load_trace(write(tmp_path / "t.npz"))
    # Offsets 0 and 5 are outside the segment, so they are whole; 3 is kept by no layer.
    assert trace.kept_fraction().tolist() == [[1.0, 1.0, 0.5], [0.0, 0.5, 1.0]]


@pytest.mark.parametrize(
    ("kept", "changes", "message"),
    [
        (KEPT, {"grid": None}, "is no trace"),
        (KEPT, {"segment": [1, 7]}, "not inside the grid"),
        (KEPT, {"segment": [3, 3]}, "not inside the grid"),
        ([[0, 2]], {}, "outside the segment"),
        ([[1, 5]], {}, "outside the segment"),
        ([1, 2], {}, r"must be \[num_layers, n\]"),
    ],
    ids=["no-grid", "segment-too-long", "empty-segment", "kept-before", "kept-behind", "one-dimension"],
)
def test_a_bad_trace_is_refused(tmp_path: Path, kept: object, changes: dict[str, object], message: str) -> None:
    with pytest.raises(TraceError, match=message):
        load_trace(write(tmp_path / "t.npz", kept, **changes))


@pytest.mark.parametrize("content", [None, b"", b"PK but no archive", b"plain text"])
def test_a_file_that_is_no_archive_is_refused(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "t.npz").write_bytes(content)
    with pytest.raises(TraceError, match=r"t\.npz"):
        load_trace(tmp_path / "t.npz")


def test_the_last_prune_of_a_branchs_screenshot_counts(tmp_path: Path) -> None:
    write(tmp_path / "000000_r1_f1.npz")
    write(tmp_path / "000001_r2_f1.npz", [[2], [2]], rid="r2")
    write(tmp_path / "000002_r3_f1.npz", [[3], [3]], rid="r3")
    write(tmp_path / "000003_r2_f2.npz", [[4], [4]], rid="r2", frame_index=2)
    found = last_traces(tmp_path, ["r1", "r2"])
    assert {index: trace.kept[0].tolist() for index, trace in found.items()} == {1: [2], 2: [4]}


def test_the_more_layers_keep_a_token_the_clearer_it_is() -> None:
    white = Image.new("RGB", (30, 20), "white")
    drawn = draw_kept(white, np.array([[1.0, 0.0, 0.25]]), scale=2)
    assert drawn.size == (60, 40)
    kept, dropped, seldom = (np.array(drawn.getpixel((x, 20))) for x in (10, 30, 50))
    assert kept.tolist() == [255, 255, 255], "kept by all layers: as it was"
    # Dropped by all: 0.2 of white and 0.8 of the dark colour (24, 28, 38).
    assert dropped.tolist() == [70, 73, 81]
    assert (dropped < seldom).all() and (seldom < kept).all()


def test_only_kept_tokens_are_framed() -> None:
    drawn = draw_kept(Image.new("RGB", (30, 20), "white"), np.array([[1.0, 0.0, 0.25]]), scale=2)
    assert [drawn.getpixel((x, 20)) for x in (0, 19)] == [(255, 140, 0)] * 2
    assert [drawn.getpixel((2, y)) for y in (0, 39)] == [(255, 140, 0)] * 2
    assert drawn.getpixel((20, 0)) == drawn.getpixel((30, 20)), "dropped: no frame"
    assert drawn.getpixel((40, 20)) not in (drawn.getpixel((50, 20)), (255, 140, 0)), "kept by some: a faint frame"


def test_cells_of_an_odd_grid_cover_the_picture_once() -> None:
    fraction = np.array([[(row * 7 + col) % 2 for col in range(7)] for row in range(5)], dtype=np.float64)
    drawn = np.asarray(draw_kept(Image.new("RGB", (23, 17), "white"), fraction, scale=1))
    dark = (drawn == (70, 73, 81)).all(axis=-1)
    expected = [[fraction[y * 5 // 17, x * 7 // 23] == 0 for x in range(23)] for y in range(17)]
    assert (dark == np.array(expected)).all()


@pytest.mark.parametrize("fraction", [np.ones(3), np.full((2, 2), 1.5), np.full((2, 2), -0.1), np.ones((0, 3))])
def test_a_bad_fraction_is_refused(fraction: Any) -> None:
    with pytest.raises(ValueError, match="kept_fraction"):
        draw_kept(Image.new("RGB", (8, 8)), fraction)


def test_the_page_is_whole_and_refers_to_nothing_outside() -> None:
    pictures = [Picture(Image.new("RGB", (20 + i, 10), "red"), f"turn {i}", "a <caption>") for i in range(2)]
    rows = [Row("tokens & slots", ("1,234", "567")), Row("pruned", ("0", "<none>"))]
    text = render_page(title="A title", setup=["8 branches"], columns=["full", "star"], rows=rows, pictures=pictures)
    page = Page()
    page.feed(text)
    page.close()
    assert page.open == [] and page.links == [] and "http" not in text and "<script" not in text
    assert page.cells == ["full", "star", "tokens & slots", "1,234", "567", "pruned", "0", "<none>"]
    assert [embedded(source).size for source in page.images] == [(20, 10), (21, 10)]


def test_the_page_has_a_chart_what_was_asked_and_what_was_run() -> None:
    picture = Picture(Image.new("RGB", (20, 10)), "turn 1", "a caption", Image.new("RGB", (10, 5)))
    text = render_page(
        title="A title", setup=[], columns=["full", "star"], rows=[], pictures=[picture],
        chart=Chart("Tokens", "", [Line("whole", "shared", [100, 450]), Line("live", "private", [100, 160])]),
        exchanges=[Exchange(1, "click <b>", "x1", [("x1", True), ("<i>", False)])], versions=[("sglang", "0.5.23")],
    )  # fmt: skip
    page = Page()
    page.feed(text)
    page.close()
    assert page.open == [] and "<script" not in text and "http" not in text
    assert [embedded(source).size for source in page.images] == [(10, 5), (20, 10)], "the original comes first"
    assert page.cells[-5:] == ["1", "click <b>", "x1", "x1", "<i>"]
    assert 'class="word right">x1' in text and 'class="word wrong">&lt;i&gt;' in text
    assert all(f"<dt>{word}</dt>" in text for word in (*GLOSSARY, "sglang"))


@pytest.mark.parametrize(
    ("largest", "ticks"), [(1, [0, 1]), (45, [0, 20, 40, 60]), (450, [0, 200, 400, 600]), (924, [0, 500, 1000])]
)
def test_a_chart_has_round_numbers_up_to_its_largest_value(largest: float, ticks: list[float]) -> None:
    chart = Chart("Tokens", "", [Line("whole", "shared", [0, largest])])
    assert [value for value, _ in chart.ticks()] == ticks
    (_, bottom), (_, top) = chart.points(chart.lines[0])
    heights = [height for _, height in chart.ticks()]
    assert bottom == heights[0] and heights[-1] <= top < bottom


def test_live_tokens_of_a_branch_follow_from_its_traces(tmp_path: Path) -> None:
    write(tmp_path / "000000_r1_f1.npz")  # two of four stay
    write(tmp_path / "000001_r2_f2.npz", [[2, 3, 4], [2, 3, 4]], rid="r2", frame_index=2)
    write(tmp_path / "000002_r2_f1.npz", [[2], [2]], rid="r2")  # the older one is cut again
    write(tmp_path / "000003_x_f1.npz", rid="of another branch")
    assert live_tokens(tmp_path, [("r0", 10), ("r1", 20), ("r2", 30)]) == [10, 18, 26]


def embedded(source: str) -> Image.Image:
    prefix = "data:image/png;base64,"
    assert source.startswith(prefix)
    return Image.open(io.BytesIO(base64.b64decode(source.removeprefix(prefix), validate=True)))


def test_the_command_draws_a_trace(tmp_path: Path) -> None:
    trace = write(tmp_path / "t.npz")
    Image.new("RGB", (48, 32), "white").save(tmp_path / "screen.png")
    words = ["view", str(trace), "--image", str(tmp_path / "screen.png"), "--out", str(tmp_path / "kept.png")]
    result = star_kv(words)
    assert result.exit_code == 0, result.output
    assert "screenshot 2 of 3, 2 layers keep 2 of 4 tokens each" in result.output
    with Image.open(tmp_path / "kept.png") as picture:
        assert picture.size == (96, 64)


@pytest.mark.parametrize(
    ("grid", "size"),
    [([2, 3], (48, 32)), ([26, 48], (1288, 700)), ([39, 68], (1920, 1080)), ([1, 3], (300, 4)), ([1, 1], (5, 5))],
    ids=["small", "rounded", "full HD", "thin", "one token"],
)
def test_a_screenshot_is_recognised_by_its_proportions(tmp_path: Path, grid: list[int], size: tuple[int, int]) -> None:
    trace = replace(load_trace(write(tmp_path / "t.npz")), rows=grid[0], cols=grid[1])
    require_match(trace, *size)


@pytest.mark.parametrize("size", [(32, 48), (1080, 1920), (1440, 1080), (48, 4)])
def test_a_picture_of_other_proportions_is_refused(tmp_path: Path, size: tuple[int, int]) -> None:
    trace = replace(load_trace(write(tmp_path / "t.npz")), rows=39, cols=68)
    with pytest.raises(TraceError, match=rf"39 rows of 68 tokens, and a picture of {size[0]} x {size[1]} has other"):
        require_match(trace, *size)


@pytest.mark.parametrize("image", ["missing.png", "t.npz"], ids=["missing", "no-picture"])
def test_the_command_names_a_bad_screenshot(tmp_path: Path, image: str) -> None:
    trace = write(tmp_path / "t.npz")
    result = star_kv(["view", str(trace), "--image", str(tmp_path / image)])
    assert result.exit_code == 2
    assert image in result.output.replace("\n", "")
