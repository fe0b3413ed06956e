"""Writes what a rollout measured: ``answers.jsonl`` as replies arrive, ``pool.jsonl`` and ``summary.json`` after."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

from star_kv_sglang.tools.rollout.runner import Answer, Rollout
from star_kv_sglang.tools.rollout.summary import Summary


class AnswerLog:
    """Appends each answer to ``answers.jsonl`` in a folder; what a broken rollout had answered is kept."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._file = (folder / "answers.jsonl").open("w", encoding="utf-8")

    def __enter__(self) -> AnswerLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def write(self, answer: Answer) -> None:
        """Adds one line."""
        self._file.write(json.dumps(answer_row(answer)) + "\n")
        self._file.flush()

    def finish(self, rollout: Rollout, summary: Summary) -> None:
        """Writes the pool's samples, in seconds since the first, and the figures."""
        start = rollout.samples[0].time_s
        rows = [{**asdict(sample), "time_s": round(sample.time_s - start, 3)} for sample in rollout.samples]
        (self._folder / "pool.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        size = {
            "policy": rollout.policy,
            "num_branches": rollout.num_branches,
            "num_turns": rollout.num_turns,
            "num_shared_turns": rollout.num_shared_turns,
            "wall_s": rollout.wall_s,
        }
        text = json.dumps({**size, **asdict(summary)}, indent=1)
        (self._folder / "summary.json").write_text(text + "\n", encoding="utf-8")


def answer_row(answer: Answer) -> dict[str, Any]:
    """An answer as a flat JSON object."""
    return {
        "branch": answer.branch,
        "turn": answer.turn,
        "index": answer.index,
        "kind": answer.question.kind,
        "back": answer.question.back,
        "moved": answer.question.moved,
        "question": answer.question.text,
        "expected": answer.question.answer,
        "correct": answer.correct,
        **asdict(answer.completion),
    }
