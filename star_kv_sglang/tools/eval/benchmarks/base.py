"""What a benchmark is to the runner: how it loads, and what a reply is worth."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import ClassVar, TypeVar

from star_kv_sglang.tools.actions import Action
from star_kv_sglang.tools.eval.errors import DataError, MalformedRow
from star_kv_sglang.tools.eval.samples import Dataset, Episode, Score, Step, TaskKind

_T = TypeVar("_T")


class Benchmark(ABC):
    """One benchmark.

    Attributes:
        name: the word on the command line.
        summary: one line for the list of benchmarks.
        kind: what the model is asked for.
        max_tokens: how long a reply may be, unless the user says otherwise.
        headline: what the mean of the scores is called.
        default_history_frames: earlier screenshots in the prompt; None for all of them.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    kind: ClassVar[TaskKind]
    max_tokens: ClassVar[int] = 256
    headline: ClassVar[str] = "accuracy"
    default_history_frames: ClassVar[int | None] = 0

    @abstractmethod
    def load(self, data: Path, history_frames: int | None) -> Dataset:
        """Reads the benchmark's files from a folder. Rows that cannot be used are reported, not raised.

        Args:
            history_frames: earlier screenshots that the prompts will hold; None for all.

        Raises:
            DataError: the folder does not hold the benchmark, or not one row of it can be used.
        """

    @abstractmethod
    def score(self, step: Step, actions: Sequence[Action], reply: str) -> Score:
        """What a reply is worth.

        Args:
            step: the step that was asked.
            actions: what the model family read in the reply; empty when it could read nothing.
            reply: the reply's text.
        """


def collect(rows: Iterable[_T], build: Callable[[_T], Episode], problems: list[MalformedRow]) -> list[Episode]:
    """Builds an episode from each row; rows that cannot be used go to ``problems``.

    A second episode of the same identifier is such a row: paired tests would not know which is which.
    """
    episodes: dict[str, Episode] = {}
    for row in rows:
        try:
            episode = build(row)
            if episode.id in episodes:
                first = episode.steps[0].id
                raise MalformedRow(Path(getattr(row, "path", "")), getattr(row, "place", ""), f"'{first}' occurs twice")
        except MalformedRow as problem:
            problems.append(problem)
            continue
        episodes[episode.id] = episode
    return list(episodes.values())


def finish(name: str, data: Path, episodes: Iterable[Episode], problems: Sequence[MalformedRow]) -> Dataset:
    """The loaded benchmark.

    Raises:
        DataError: there is nothing to ask.
    """
    dataset = Dataset(tuple(episodes), tuple(problems))
    if dataset.num_scored == 0:
        first = f"; the first of {len(problems)} problems: {problems[0]}" if problems else ""
        raise DataError(f"{data} holds no usable sample of {name}{first}")
    return dataset


def mean(values: Sequence[float]) -> float:
    """The mean; 0 of nothing."""
    return sum(values) / len(values) if values else 0.0
