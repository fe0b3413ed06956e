"""Does the model answer? A fast check with transformers alone, full cache, one forward pass a trajectory.

``python -m tinygui.accuracy`` (from ``examples/``) asks fresh seeds, or the questions of a trajectory file, and prints
accuracy per kind of question, and per colour and letter where it fails. Reference answers stand in the history, and a
reply's second word is predicted behind the reference's first: right replies are exactly those of greedy decoding,
except that a wrong first word is not followed up.
"""

from __future__ import annotations

import argparse
import io
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoTokenizer, Qwen2VLImageProcessor

from star_kv_sglang.tools.rollout.scoring import is_correct
from star_kv_sglang.tools.rollout.trajectory import Question, Trajectory, Turn, load_trajectories
from tinygui.trajectories import generate
from tinygui.worlds import PANELS, WORLDS

MODEL = Path(__file__).with_name("model")


@dataclass(frozen=True, slots=True)
class Reply:
    """What the model said to a question."""

    question: Question
    text: str

    @property
    def correct(self) -> bool:
        """Whether the reply counts."""
        return is_correct(self.question, self.text)


class Answerer:
    """The model in float32 on the CPU, or on the device given."""

    def __init__(self, path: Path = MODEL, device: str = "cpu") -> None:
        self._tokenizer: Any = AutoTokenizer.from_pretrained(path)
        self._images: Any = Qwen2VLImageProcessor.from_pretrained(path)
        self._model: Any = AutoModelForImageTextToText.from_pretrained(path, dtype=torch.float32).to(device).eval()

    @torch.inference_mode()
    def answer(self, trajectory: Trajectory) -> list[Reply]:
        """Predicts every answer of a trajectory, in order."""
        pictures = [Image.open(io.BytesIO(turn.image_png)).convert("RGB") for turn in trajectory.turns]
        visual = self._images(images=pictures, return_tensors="pt").to(self._model.device)
        text = self._tokenizer.apply_chat_template(_messages(trajectory), tokenize=False)
        merge = self._images.merge_size**2
        for grid in visual["image_grid_thw"]:
            text = text.replace("<|image_pad|>", " ".join(["<|placeholder|>"] * (int(grid.prod()) // merge)), 1)
        ids = self._tokenizer(text.replace("<|placeholder|>", "<|image_pad|>"), return_tensors="pt").input_ids
        ids = ids.to(self._model.device)
        types = (ids == self._model.config.image_token_id).int()
        logits = self._model(input_ids=ids, mm_token_type_ids=types, **visual).logits[0]
        predicted = logits.argmax(-1).tolist()
        starts = [i + 1 for i, token in enumerate(ids[0].tolist()) if token == self._id("assistant")]
        questions = [question for turn in trajectory.turns for question in turn.questions]
        return [
            Reply(question, self._tokenizer.decode(predicted[start - 1 : start + 1]))
            for question, start in zip(questions, starts, strict=True)
        ]

    def _id(self, word: str) -> int:
        return int(self._tokenizer(word).input_ids[0])


def _messages(trajectory: Trajectory) -> list[dict[str, object]]:
    messages: list[dict[str, object]] = []
    for turn in trajectory.turns:
        for index, question in enumerate(turn.questions):
            messages.append({"role": "user", "content": _content(turn, question) if index == 0 else question.text})
            messages.append({"role": "assistant", "content": question.answer})
    return messages


def _content(turn: Turn, question: Question) -> list[dict[str, str]]:
    return [{"type": "text", "text": turn.step}, {"type": "image"}, {"type": "text", "text": question.text}]


def accuracy(replies: Iterable[Reply]) -> dict[str, tuple[int, int]]:
    """Right replies and questions per kind; recalls also per screens back."""
    asked: Counter[str] = Counter()
    right: Counter[str] = Counter()
    for reply in replies:
        question = reply.question
        names = [question.kind] + ([f"recall {question.back} back"] if question.kind == "recall" else [])
        for name in names:
            asked[name] += 1
            right[name] += reply.correct
    return {name: (right[name], asked[name]) for name in sorted(asked)}


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description="Accuracy of a model with the full cache.")
    parser.add_argument("--model", type=Path, default=MODEL, help="a model's folder")
    parser.add_argument("--world", choices=list(WORLDS), default=PANELS.name)
    parser.add_argument("--file", type=Path, help="a trajectory file instead of fresh seeds")
    parser.add_argument("--seed", type=int, default=1_000_000)
    parser.add_argument("--count", type=int, default=50, help="trajectories")
    parser.add_argument("--turns", type=int, default=6)
    parser.add_argument("--questions", type=int, default=4, help="questions a turn")
    args = parser.parse_args()
    world = WORLDS[args.world]
    seeds = range(args.seed, args.seed + args.count)
    trajectories = (
        load_trajectories(args.file)[: args.count]
        if args.file
        else [generate(seed, num_turns=args.turns, questions_per_turn=args.questions, world=world) for seed in seeds]
    )
    answerer = Answerer(args.model)
    replies = [reply for trajectory in trajectories for reply in answerer.answer(trajectory)]
    for name, (right, asked) in accuracy(replies).items():
        print(f"{name:14} {right:5} of {asked:5}  {right / asked:7.2%}")
    for reply in replies:
        if not reply.correct:
            print(f"wrong: {reply.question.text!r}: {reply.text!r}, not {reply.question.answer!r}")


if __name__ == "__main__":
    main()
