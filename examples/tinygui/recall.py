"""Trajectories whose last turn asks what only earlier screens know, packed for one forward pass each.

Every turn shows a screen and asks one question; the last one asks many recall questions at once, each of a widget that
has moved or is gone. They stand behind the last screen as branches: all start at the same position and see the
history, not each other, so that every one is answered as if it had been the only one.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoTokenizer, Qwen2VLImageProcessor

from star_kv_sglang.tools.rollout.scoring import is_correct
from star_kv_sglang.tools.rollout.trajectory import Question
from tinygui.accuracy import MODEL
from tinygui.language import LAST_STEP, ask, possible_questions, step_name
from tinygui.world import Shown
from tinygui.worlds import PANELS, World


@dataclass(frozen=True)
class RecallCase:
    """One trajectory.

    Attributes:
        screens: The screens, oldest first.
        history: The question of every turn but the last.
        steps: The turns' tags.
        recalls: What the last turn asks, each on its own.
        world: Where the screens are from.
    """

    screens: tuple[Shown, ...]
    history: tuple[Question, ...]
    steps: tuple[str, ...]
    recalls: tuple[Question, ...]
    world: World = PANELS

    def pictures(self) -> list[Image.Image]:
        """The screens' pixels."""
        return [self.world.render(screen) for screen in self.screens]


def recall_case(seed: int, num_screens: int, num_recalls: int, world: World = PANELS) -> RecallCase:
    """The case of a seed: recalls are spread evenly over the earlier screens as far as these have moved widgets.

    Raises:
        ValueError: The trajectory has too few widgets that moved.
    """
    rng = Random(f"tinygui recall {seed}")
    first_step = rng.randint(1, LAST_STEP - num_screens + 1)
    screens = world.screens(rng, num_screens)
    history = tuple(ask(rng, screens, index, first_step, 1)[0] for index in range(num_screens - 1))
    last = num_screens - 1
    moved = [q for q in possible_questions(screens, last, first_step, "recall") if q.moved]
    if len(moved) < num_recalls:
        raise ValueError(f"seed {seed}: {len(moved)} widgets moved or went, {num_recalls} questions were asked for")
    rng.shuffle(moved)
    by_age: dict[int, list[Question]] = {back: [q for q in moved if q.back == back] for back in range(1, num_screens)}
    recalls: list[Question] = []
    while len(recalls) < num_recalls:
        for questions in by_age.values():
            if questions and len(recalls) < num_recalls:
                recalls.append(questions.pop())
    steps = tuple(step_name(first_step, index) for index in range(num_screens))
    return RecallCase(tuple(screens), history, steps, tuple(recalls), world)


def recall_cases(
    seed: int, count: int, *, num_screens: int = 6, num_recalls: int = 10, world: World = PANELS
) -> list[RecallCase]:
    """``count`` cases from consecutive seeds; seeds with too few moved widgets are passed over."""
    cases: list[RecallCase] = []
    while len(cases) < count:
        with suppress(ValueError):
            cases.append(recall_case(seed, num_screens, num_recalls, world))
        seed += 1
    return cases


def chat_messages(case: RecallCase, turn: int, question: str) -> list[dict[str, object]]:
    """The conversation up to a turn's question, reference answers in its history."""
    messages: list[dict[str, object]] = []
    for index, step in enumerate(case.steps[: turn + 1]):
        text = case.history[index].text if index < turn else question
        content = [{"type": "text", "text": step}, {"type": "image"}, {"type": "text", "text": text}]
        messages.append({"role": "user", "content": content})
        if index < turn:
            messages.append({"role": "assistant", "content": case.history[index].answer})
    return messages


@dataclass(frozen=True)
class Packed:
    """Cases of the same shape as one batch.

    Attributes:
        cases: The cases, B of them.
        embeds: float32 [B, T, C]: texts and screens.
        deepstack: What the vision tower adds to the first layers, float32 [B * visual, C] each.
        position_ids: int64 [3, B, T].
        visual: bool [B, T].
        visible: bool [T, T]: causal, and branches apart; the same for all cases.
        frames: Positions of every screen, as [start, end).
        prompt_ends: Position after each turn's prompt; what it prunes is hidden from there on.
        answers: Position of the first predicted word of each recall.
    """

    cases: tuple[RecallCase, ...]
    embeds: torch.Tensor
    deepstack: list[torch.Tensor]
    position_ids: torch.Tensor
    visual: torch.Tensor
    visible: torch.Tensor
    frames: tuple[tuple[int, int], ...]
    prompt_ends: tuple[int, ...]
    answers: tuple[int, ...]


class RecallModel:
    """A model in float32, the shipped one on the CPU unless told otherwise, and how its prompts are built."""

    def __init__(self, path: Path = MODEL, device: str = "cpu") -> None:
        self._tokenizer: Any = AutoTokenizer.from_pretrained(path)
        self._images: Any = Qwen2VLImageProcessor.from_pretrained(path)
        self.model: Any = AutoModelForImageTextToText.from_pretrained(path, dtype=torch.float32).eval().to(device)

    @property
    def text(self) -> Any:
        """The language model."""
        return self.model.model.language_model

    @torch.inference_mode()
    def pack(self, cases: Sequence[RecallCase]) -> Packed:
        """Run the vision tower and lay the prompts out; every case must have equally many screens and recalls."""
        pictures = [picture for case in cases for picture in case.pictures()]
        visual = self._images(images=pictures, return_tensors="pt").to(self.model.device)
        num_visual = int(visual["image_grid_thw"][0].prod()) // self._images.merge_size**2
        trunks = [self._trunk(case, num_visual) for case in cases]
        branches = [[self._branch(question) for question in case.recalls] for case in cases]
        ids = torch.tensor(
            [trunk + [i for branch in parts for i in branch] for trunk, parts in zip(trunks, branches, strict=True)],
            device=self.model.device,
        )
        trunk_len, branch_len = len(trunks[0]), len(branches[0][0])
        positions = self._positions(ids, trunk_len, branch_len, visual["image_grid_thw"])
        features = self.model.model.get_image_features(visual["pixel_values"], visual["image_grid_thw"])
        embeds = self.text.embed_tokens(ids)
        is_visual = ids == self.model.config.image_token_id
        embeds[is_visual] = torch.cat(list(features.pooler_output))
        starts = [i for i in range(1, trunk_len) if is_visual[0, i] and not is_visual[0, i - 1]]
        return Packed(
            tuple(cases),
            embeds,
            [torch.cat(list(tapped)) for tapped in features.deepstack_features],
            positions,
            is_visual,
            _visible(trunk_len, branch_len, ids.shape[1]).to(self.model.device),
            tuple((start, start + num_visual) for start in starts),
            self._prompt_ends(trunks[0]),
            tuple(trunk_len + branch_len * (i + 1) - 2 for i in range(len(branches[0]))),
        )

    def accuracy(self, packed: Packed, hidden: torch.Tensor) -> list[tuple[Question, bool]]:
        """Whether each recall of the batch is answered from the last hidden states [B, T, C]."""
        columns = [column for start in packed.answers for column in (start, start + 1)]
        words = self.model.lm_head(hidden[:, columns]).argmax(-1)
        results = []
        for row, case in zip(words.tolist(), packed.cases, strict=True):
            for index, question in enumerate(case.recalls):
                text = self._tokenizer.decode(row[2 * index : 2 * index + 2])
                results.append((question, is_correct(question, text)))
        return results

    def _trunk(self, case: RecallCase, num_visual: int) -> list[int]:
        """Ids from the first turn to the last turn's screen."""
        messages = chat_messages(case, len(case.history), "")
        text = self._tokenizer.apply_chat_template(messages, tokenize=False)
        text = text.replace("<|image_pad|>", " ".join(["<|image_pad|>"] * num_visual))
        end = text.rindex("<|vision_end|>") + len("<|vision_end|>")
        ids: list[int] = self._tokenizer(text[:end]).input_ids
        return ids

    def _branch(self, question: Question) -> list[int]:
        """Ids of a question behind the last screen, and the first word of its answer."""
        image = "<|vision_start|><|image_pad|><|vision_end|>"
        messages = [
            {"role": "user", "content": f"{image}{question.text}"},
            {"role": "assistant", "content": question.answer},
        ]
        text = self._tokenizer.apply_chat_template(messages, tokenize=False)
        ids = self._tokenizer(text).input_ids
        first = ids.index(self.model.config.vision_end_token_id) + 1
        return list(ids[first : self._answer_start(ids) + 1])

    def _answer_start(self, ids: Sequence[int]) -> int:
        assistant = int(self._tokenizer("assistant").input_ids[0])
        return max(i for i, token in enumerate(ids) if token == assistant) + 1

    def _prompt_ends(self, trunk: Sequence[int]) -> tuple[int, ...]:
        assistant = int(self._tokenizer("assistant").input_ids[0])
        return tuple(i + 1 for i, token in enumerate(trunk) if token == assistant)

    def _positions(self, ids: torch.Tensor, trunk_len: int, branch_len: int, grids: torch.Tensor) -> torch.Tensor:
        """Rotary positions [3, B, T]; every branch starts where the trunk ends."""
        trunk = ids[:, :trunk_len]
        types = (trunk == self.model.config.image_token_id).int()
        positions, _ = self.model.model.get_rope_index(trunk, mm_token_type_ids=types, image_grid_thw=grids)
        following = positions.amax(dim=(0, 2))[:, None] + 1 + torch.arange(branch_len, device=ids.device)
        num_branches = (ids.shape[1] - trunk_len) // branch_len
        return torch.cat([positions, following.repeat(1, num_branches).expand(3, -1, -1)], dim=2)


def _visible(trunk_len: int, branch_len: int, length: int) -> torch.Tensor:
    """Which key (column) each query (row) sees, bool [T, T]."""
    sees = torch.ones(length, length, dtype=torch.bool).tril()
    branch = (torch.arange(length) - trunk_len).div(branch_len, rounding_mode="floor").clamp(min=-1)
    return sees & ((branch == -1) | (branch == branch[:, None]))
