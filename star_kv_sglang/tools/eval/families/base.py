"""A model family: how a model is prompted, and how its replies are read."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, ClassVar, Final, Self

from jinja2 import Environment, PackageLoader, StrictUndefined

from star_kv_sglang.tools.actions import Action, Point
from star_kv_sglang.tools.eval.coordinates import CoordinateSpace, extent, from_relative, to_relative
from star_kv_sglang.tools.eval.errors import ReplyError
from star_kv_sglang.tools.eval.samples import Episode, TaskKind
from star_kv_sglang.tools.resize import PixelBounds, Size

QWEN25_PIXELS: Final = PixelBounds(factor=28, min_pixels=100 * 28 * 28, max_pixels=16384 * 28 * 28)


@dataclass(frozen=True)
class ModelFamily(ABC):
    """Prompts and action language of one family of models.

    Attributes:
        bounds: how the served model's image processor resizes.
        system_prompt: replaces the family's own system text, for models tuned to another wording.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    space: ClassVar[CoordinateSpace]

    bounds: PixelBounds = QWEN25_PIXELS
    system_prompt: str | None = None

    def with_pixels(self, min_pixels: int | None, max_pixels: int | None) -> Self:
        """The family with other bounds of the image's area; None keeps a bound.

        Raises:
            ImageSizeError: the bounds contradict each other.
        """
        bounds = PixelBounds(
            self.bounds.factor,
            self.bounds.min_pixels if min_pixels is None else min_pixels,
            self.bounds.max_pixels if max_pixels is None else max_pixels,
        )
        return replace(self, bounds=bounds)

    def with_prompt(self, system_prompt: str) -> Self:
        """The family with another system text."""
        return replace(self, system_prompt=system_prompt)

    @abstractmethod
    def system_text(self, kind: TaskKind, sent: Size) -> str | None:
        """The system message for screenshots of ``sent`` pixels, or None when the family has none."""

    @abstractmethod
    def task_text(self, kind: TaskKind, task: str) -> str:
        """What the first user turn says of the task."""

    @abstractmethod
    def parse(self, kind: TaskKind, reply: str, sent: Size) -> tuple[Action, ...]:
        """The actions of a reply to a screenshot that was sent in ``sent`` pixels; at least one.

        Raises:
            ReplyError: there is none, or one cannot be read.
        """

    @abstractmethod
    def render(self, kind: TaskKind, actions: Sequence[Action], thought: str, sent: Size) -> str:
        """The reply that says these actions: what the history holds. `parse` reads it back.

        Raises:
            ReplyError: the family's language has no word for an action.
        """

    def turn_texts(self, kind: TaskKind, episode: Episode, index: int) -> tuple[str, str]:
        """What the user says before and after the screenshot of a step; either may be empty.

        An agent gets the task first, so that the prompt's beginning stays the same from turn to turn. In grounding, one
        screenshot serves many instructions, so the instruction follows it.
        """
        step = episode.steps[index]
        if kind is TaskKind.GROUNDING:
            return "", self.task_text(kind, episode.task)
        return (self.task_text(kind, episode.task) if index == 0 else ""), step.instruction

    def corner(self, sent: Size) -> Size:
        """The family's coordinates of the lower right corner of an image."""
        return extent(self.space, sent, self.bounds)

    def read_point(self, x: float, y: float, sent: Size) -> Point:
        """A point as the model wrote it, relative to the screenshot."""
        return to_relative(x, y, self.corner(sent))

    def write_point(self, point: Point | None, sent: Size) -> tuple[int, int]:
        """A relative point as the model writes it.

        Raises:
            ReplyError: there is no point.
        """
        if point is None:
            raise ReplyError("the action needs a point")
        return from_relative(point, self.corner(sent))


@cache
def _environment() -> Environment:
    loader = PackageLoader("star_kv_sglang.tools.eval.families", "prompts")
    # Prompts are text for a model, not HTML.
    return Environment(loader=loader, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, autoescape=False)


def render_prompt(name: str, **values: Any) -> str:
    """A prompt from the folder ``prompts``, without its last newline."""
    return _environment().get_template(f"{name}.jinja").render(**values)


def numbers_to_point(numbers: Sequence[float], what: str) -> tuple[float, float]:
    """Two numbers are a point, four are a box, which counts as its centre.

    Raises:
        ReplyError: it is another count.
    """
    if len(numbers) == 2:
        return numbers[0], numbers[1]
    if len(numbers) == 4:
        return (numbers[0] + numbers[2]) / 2, (numbers[1] + numbers[3]) / 2
    raise ReplyError(f"{what} holds {len(numbers)} numbers; a point has 2 and a box 4")
