"""ScreenSpot-v2 and ScreenSpot-Pro: one screenshot, one instruction, one element to click.

Files: huggingface.co/datasets/OS-Copilot/ScreenSpot-v2 and huggingface.co/datasets/likaixin/ScreenSpot-Pro.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from star_kv_sglang.tools.actions import Action, Point
from star_kv_sglang.tools.eval.benchmarks.base import Benchmark, collect, finish
from star_kv_sglang.tools.eval.benchmarks.rows import Row, read_rows
from star_kv_sglang.tools.eval.errors import DataError, MalformedRow
from star_kv_sglang.tools.eval.samples import Dataset, Episode, Score, Screenshot, Step, TaskKind

RelativeBox = tuple[float, float, float, float]
"""Left, top, right, bottom as shares of the screenshot's sides."""

_TARGETS: Final = ("text", "icon")


def contains(box: RelativeBox, point: Point) -> bool:
    """Whether a point lies in a box, edges included."""
    return box[0] <= point[0] <= box[2] and box[1] <= point[1] <= box[3]


class _ScreenSpot(Benchmark):
    kind = TaskKind.GROUNDING
    max_tokens = 128

    def score(self, step: Step, actions: Sequence[Action], reply: str) -> Score:
        """1 when the first point that the reply names lies in the element's box."""
        point = next((action.point for action in actions if action.point is not None), None)
        return Score(float(point is not None and contains(step.reference, point)))

    @abstractmethod
    def _files(self, data: Path) -> list[Path]:
        """The annotation files of a folder."""

    @abstractmethod
    def _episode(self, row: Row, images: Path) -> Episode:
        """The sample of a row."""

    def _images(self, data: Path) -> Path:
        return data / "images" if (data / "images").is_dir() else data

    def load(self, data: Path, history_frames: int | None) -> Dataset:
        if history_frames != 0:
            raise DataError(f"{self.name} has no history; leave --history-frames out")
        problems: list[MalformedRow] = []
        images = self._images(data)
        rows = [row for path in self._files(data) for row in read_rows(path, problems)]
        episodes = collect(rows, lambda row: self._episode(row, images), problems)
        return finish(self.name, data, episodes, problems)


class ScreenSpotV2(_ScreenSpot):
    """ScreenSpot-v2: 1,272 elements of web pages, desktops and phones."""

    name = "screenspot-v2"
    summary = "ScreenSpot-v2: click the element (web, desktop, mobile)"

    def _files(self, data: Path) -> list[Path]:
        return [data / f"screenspot_{platform}_v2.json" for platform in ("desktop", "mobile", "web")]

    def _images(self, data: Path) -> Path:
        # The archive screenspotv2_image.zip unpacks into a folder of that name.
        folder = data / "screenspotv2_image"
        return folder if folder.is_dir() else super()._images(data)

    def _episode(self, row: Row, images: Path) -> Episode:
        platform = row.path.stem.split("_")[1]
        target = _target(row, "data_type")
        screenshot = Screenshot.open(images / row.field("img_filename", str), source=row.path, row=row.place)
        x, y, width, height = row.numbers("bbox", 4)
        box = _relative(row, (x, y, x + width, y + height), screenshot.size)
        identifier = f"{platform}/{row.place.removeprefix('row ')}"
        groups = {
            "platform": platform,
            "target": target,
            "platform and target": f"{platform} {target}",
            "source": row.field("data_source", str, "unknown"),
        }
        step = Step(identifier, screenshot, groups=groups, reference=box)
        return Episode(identifier, row.field("instruction", str), (step,))


class ScreenSpotPro(_ScreenSpot):
    """ScreenSpot-Pro: elements of professional applications on high-resolution screens."""

    name = "screenspot-pro"
    summary = "ScreenSpot-Pro: click the element (professional applications, up to 4K and beyond)"

    def _files(self, data: Path) -> list[Path]:
        files = sorted((data / "annotations").glob("*.json"))
        if not files:
            raise DataError(
                f"{data}/annotations holds no .json file; point --data at the unpacked ScreenSpot-Pro folder"
            )
        return files

    def _episode(self, row: Row, images: Path) -> Episode:
        target = _target(row, "ui_type")
        screenshot = Screenshot.open(images / row.field("img_filename", str), source=row.path, row=row.place)
        x1, y1, x2, y2 = row.numbers("bbox", 4)
        width, height = row.numbers("img_size", 2)
        box = _relative(row, (x1, y1, x2, y2), (width, height))
        group = row.field("group", str)
        identifier = row.text_id("id")
        groups = {
            "group": group,
            "target": target,
            "group and target": f"{group} {target}",
            "application": row.field("application", str),
            "platform": row.field("platform", str),
        }
        step = Step(identifier, screenshot, groups=groups, reference=box)
        return Episode(identifier, row.field("instruction", str), (step,))


def _target(row: Row, field: str) -> str:
    target = row.field(field, str)
    if target not in _TARGETS:
        raise row.error(f"field '{field}' must be text or icon, not {target!r}")
    return target


def _relative(row: Row, box: RelativeBox, size: tuple[float, float]) -> RelativeBox:
    left, top, right, bottom = box
    width, height = size
    if width <= 0 or height <= 0:
        raise row.error(f"field 'img_size' must be two positive numbers, not {[width, height]}")
    if left >= right or top >= bottom:
        raise row.error(f"field 'bbox' is empty: left {left:g}, top {top:g}, right {right:g}, bottom {bottom:g}")
    return left / width, top / height, right / width, bottom / height
