"""What a benchmark is made of: episodes of steps, each a screenshot with an instruction and the right action."""

from __future__ import annotations

import base64
import io
import mimetypes
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

from star_kv_sglang.tools.actions import Action
from star_kv_sglang.tools.eval.errors import MalformedRow
from star_kv_sglang.tools.resize import Size


class TaskKind(StrEnum):
    """What the model is asked for; a model family has a prompt for each."""

    GROUNDING = "grounding"
    COMPUTER = "computer"
    MOBILE = "mobile"


@dataclass(frozen=True, slots=True)
class Screenshot:
    """An image file.

    Attributes:
        path: the file.
        size: its width and height in pixels.
        sent_size: the size in which it is sent; smaller than ``size`` when a benchmark scales large images down.
    """

    path: Path
    size: Size
    sent_size: Size

    @classmethod
    def open(cls, path: Path, *, source: Path, row: str, limit: Size | None = None) -> Screenshot:
        """Reads an image's size; ``limit`` is the largest width and height in which it may be sent.

        Raises:
            MalformedRow: there is no such file, or it is no image; ``source`` and ``row`` say who names it.
        """
        try:
            with Image.open(path) as image:
                size = image.size
        except FileNotFoundError:
            raise MalformedRow(source, row, f"the image {path} does not exist") from None
        except (UnidentifiedImageError, OSError) as error:
            raise MalformedRow(source, row, f"the image {path} cannot be read: {error}") from error
        scale = 1.0 if limit is None else min(1.0, limit[0] / size[0], limit[1] / size[1])
        sent = size if scale == 1.0 else (max(1, round(size[0] * scale)), max(1, round(size[1] * scale)))
        return cls(path, size, sent)

    def data_url(self) -> str:
        """The image as an OpenAI message carries it. An image that is not scaled is sent as it lies on disk."""
        if self.sent_size == self.size:
            kind = mimetypes.guess_type(self.path.name)[0] or "image/png"
            payload = self.path.read_bytes()
        else:
            buffer = io.BytesIO()
            with Image.open(self.path) as image:
                image.convert("RGB").resize(self.sent_size, Image.Resampling.LANCZOS).save(buffer, "PNG")
            kind, payload = "image/png", buffer.getvalue()
        return f"data:{kind};base64,{base64.b64encode(payload).decode('ascii')}"


@dataclass(frozen=True, slots=True)
class Step:
    """One turn of an episode.

    Attributes:
        id: unique in the benchmark and the same in every run: paired tests match samples by it.
        screenshot: what the user sees; None when the turn asks again about the last screenshot.
        instruction: said at this turn, after the screenshot; empty when the episode's task says all.
        truth: the right actions; later turns find them in their history. Empty for a grounding sample.
        thought: the thought that goes with ``truth`` in later turns' history.
        scored: False for a turn that only stands in the history of others.
        groups: the tables that it counts in, for example ``{"platform": "web"}``.
        reference: what the benchmark's metric needs; only the benchmark looks into it.
    """

    id: str
    screenshot: Screenshot | None
    instruction: str = ""
    truth: tuple[Action, ...] = ()
    thought: str = ""
    scored: bool = True
    groups: Mapping[str, str] = field(default_factory=dict)
    reference: Any = None


@dataclass(frozen=True, slots=True)
class Episode:
    """Steps that share a history. A benchmark of single images has episodes of one step.

    Attributes:
        id: unique in the benchmark; resampling draws whole episodes.
        task: what the user wants, said once, before the first screenshot (grounding: after it).
        steps: in order.
    """

    id: str
    task: str
    steps: tuple[Step, ...]


@dataclass(frozen=True, slots=True)
class Dataset:
    """A loaded benchmark.

    Attributes:
        episodes: those with at least one scored step.
        problems: rows left out, each with its file, place and reason.
    """

    episodes: tuple[Episode, ...]
    problems: tuple[MalformedRow, ...] = ()

    @property
    def num_scored(self) -> int:
        """Steps that are asked and scored."""
        return sum(step.scored for episode in self.episodes for step in episode.steps)


@dataclass(frozen=True, slots=True)
class Score:
    """What a reply is worth.

    Attributes:
        value: the benchmark's headline figure for this sample, in [0, 1].
        parts: further figures of the benchmark, only those that this sample counts in, for example
            ``{"grounding": 1.0}``.
    """

    value: float
    parts: Mapping[str, float] = field(default_factory=dict)
