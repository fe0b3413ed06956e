"""A benchmark and a model family made here: they also show that others can be registered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from star_kv_sglang.tools.actions import Action, ActionKind
from star_kv_sglang.tools.eval.benchmarks.base import Benchmark, finish
from star_kv_sglang.tools.eval.coordinates import CoordinateSpace, Size
from star_kv_sglang.tools.eval.errors import ReplyError
from star_kv_sglang.tools.eval.families.base import ModelFamily
from star_kv_sglang.tools.eval.runner import Protocol, Settings
from star_kv_sglang.tools.eval.samples import Dataset, Episode, Score, Screenshot, Step, TaskKind
from star_kv_sglang.tools.eval.store import Result, Status


def word(text: str) -> Action:
    return Action(ActionKind.ANSWER, text=text)


@dataclass(frozen=True)
class Words(ModelFamily):
    """Replies with one lower-case word; shows each turn's number before its screenshot."""

    name = "words"
    summary = "one word"
    space = CoordinateSpace.THOUSANDTHS

    def system_text(self, kind: TaskKind, sent: Size) -> str | None:
        return None

    def task_text(self, kind: TaskKind, task: str) -> str:
        return task

    def turn_texts(self, kind: TaskKind, episode: Episode, index: int) -> tuple[str, str]:
        return f"turn {index}", episode.steps[index].instruction

    def parse(self, kind: TaskKind, reply: str, sent: Size) -> tuple[Action, ...]:
        if not reply.islower():
            raise ReplyError(f"{reply!r} is no lower-case word")
        return (word(reply),)

    def render(self, kind: TaskKind, actions: Sequence[Action], thought: str, sent: Size) -> str:
        return actions[0].text or ""


class Colours(Benchmark):
    """Episodes a and b of three turns; turn 1 of b is not scored, and turn 2 brings no screenshot."""

    name = "colours"
    summary = "what colour"
    kind = TaskKind.COMPUTER
    max_tokens = 5
    default_history_frames = None

    def load(self, data: Path, history_frames: int | None) -> Dataset:
        path = data / "white.png"
        Image.new("RGB", (64, 32), "white").save(path)
        shot = Screenshot.open(path, source=data, row="row 1")
        return finish(self.name, data, [self._episode(name, shot) for name in "ab"], [])

    def _episode(self, name: str, shot: Screenshot) -> Episode:
        steps = tuple(
            Step(
                f"{name}/{index}",
                None if index == 2 else shot,
                f"which {name}{index}?",
                (word(f"true{name}{index}"),),
                scored=(name, index) != ("b", 1),
                groups={"turn": f"{index} back"},
            )
            for index in range(3)
        )
        return Episode(name, "colours", steps)

    def score(self, step: Step, actions: Sequence[Action], reply: str) -> Score:
        right = float(tuple(actions) == step.truth)
        return Score(right, {"first": right} if step.id.endswith("0") else {})


def settings(protocol: Protocol = Protocol.STATELESS, **changes: object) -> Settings:
    values: dict[str, object] = {
        "benchmark": Colours(),
        "family": Words(),
        "model": "tiny",
        "protocol": protocol,
        "history_frames": None,
        "max_tokens": 5,
        **changes,
    }
    return Settings(**values)  # type: ignore[arg-type]


def result(sample: str, score: float = 1.0, episode: str | None = None, **changes: object) -> Result:
    values: dict[str, object] = {
        "sample": sample,
        "episode": sample if episode is None else episode,
        "status": Status.OK,
        "score": score,
        "reply": f"reply {score}",
        "actions": [{"kind": "click", "point": [score, score]}],
        "completion_tokens": 10,
        "prompt_tokens": 100,
        **changes,
    }
    return Result(**values)  # type: ignore[arg-type]
