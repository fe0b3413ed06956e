"""Reinforcement learning in one process: weights into the engine, groups of rollouts, a step of the trainer, and again.

``python -m training.loop`` (from ``examples/``). SGLang serves the shipped model with pruning. All rollouts of a group
share their first prompt (``n``) and go on with screens of their own, which are pruned turn by turn. The trainer, a
plain transformers model, computes each answer under the masks that come with it: with them its probabilities are the
engine's, and the importance ratios are 1 before its step. Without them they are not.
"""

from __future__ import annotations

import asyncio
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from star_kv_sglang import cpu_mode
from star_kv_sglang.rl import KeptRecord, answer_logprobs, read_kept
from star_kv_sglang.tools.rollout.scoring import is_correct
from star_kv_sglang.tools.rollout.trajectory import Trajectory
from tinygui.accuracy import MODEL
from tinygui.language import QuestionMix
from tinygui.trajectories import branching

SAMPLING = {"temperature": 1.0, "max_new_tokens": 3, "custom_params": {"kv_return_kept": True}}


QUESTIONS = QuestionMix(click=0.2, recall=0.8, read=0.0, moved=1.0)
"""Mostly of what only earlier screens know: a pruned history makes the model doubt."""


@dataclass(frozen=True)
class Sample:
    """One answer: what it was asked, what it said, what it could attend to, and whether it is right."""

    inputs: dict[str, Any]
    output_ids: list[int]
    logprobs: torch.Tensor
    record: KeptRecord
    reward: float


@dataclass(frozen=True)
class Step:
    """How far importance ratios are from 1, and the mean reward."""

    worst_masked: float
    worst_unmasked: float
    reward: float


def roll_out(engine: Any, processor: Any, group: Sequence[Trajectory]) -> list[Sample]:
    """Play one group: the first turn is the same prompt for all, asked once."""
    size, samples = len(group), list[Sample]()
    chats: list[list[dict[str, Any]]] = [[] for _ in group]
    for number in range(len(group[0].turns)):
        questions = [trajectory.turns[number].questions[0] for trajectory in group]
        for chat, trajectory, question in zip(chats, group, questions, strict=True):
            words = (trajectory.turns[number].step, question.text)
            content = [{"type": "text", "text": words[0]}, {"type": "image"}, {"type": "text", "text": words[1]}]
            chat.append({"role": "user", "content": content})
        prompts = [processor.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) for chat in chats]
        pictures = [[picture(turn.image_png) for turn in trajectory.turns[: number + 1]] for trajectory in group]
        if number == 0:
            sampling = {**SAMPLING, "n": size}
            answers = engine.generate(prompts[0], sampling, image_data=pictures[0], return_logprob=True)
        else:
            answers = engine.loop.run_until_complete(ask_all(engine, prompts, pictures))
        for chat, prompt, seen, question, answer in zip(chats, prompts, pictures, questions, answers, strict=True):
            chat.append({"role": "assistant", "content": answer["text"]})
            inputs = dict(processor(text=[prompt], images=seen, return_tensors="pt"))
            logprobs = torch.tensor([entry[0] for entry in answer["meta_info"]["output_token_logprobs"]])
            reward = float(is_correct(question, answer["text"]))
            samples.append(Sample(inputs, answer["output_ids"], logprobs, read_kept(answer["meta_info"]), reward))
    return samples


async def ask_all(engine: Any, prompts: Sequence[str], pictures: Sequence[list[Image.Image]]) -> list[dict[str, Any]]:
    """The next turn of every rollout."""
    asked = zip(prompts, pictures, strict=True)
    return await asyncio.gather(
        *(engine.async_generate(text, SAMPLING, image_data=seen, return_logprob=True) for text, seen in asked)
    )


def picture(png: bytes) -> Image.Image:
    """A screenshot's pixels."""
    return Image.open(io.BytesIO(png)).convert("RGB")


def train(model: Any, optimizer: torch.optim.Optimizer, samples: Sequence[Sample]) -> Step:
    """One step of policy gradient with importance ratios, advantages from the group's mean."""
    mean = sum(sample.reward for sample in samples) / len(samples)
    worst_masked = worst_unmasked = 0.0
    optimizer.zero_grad()
    for sample in samples:
        asked = (model, sample.inputs, sample.output_ids)
        ratios = (answer_logprobs(*asked, sample.record) - sample.logprobs).exp()
        (-(sample.reward - mean) * ratios.mean() / len(samples)).backward()
        with torch.no_grad():
            unmasked = (answer_logprobs(*asked, None) - sample.logprobs).exp()
        worst_masked = max(worst_masked, float((ratios.detach() - 1).abs().max()))
        worst_unmasked = max(worst_unmasked, float((unmasked - 1).abs().max()))
    optimizer.step()
    return Step(worst_masked, worst_unmasked, mean)


def improve(engine: Any, model: Any, processor: Any, *, group: int, turns: int, steps: int) -> Iterator[Step]:
    """The weights into the engine, rollouts, a step, and again."""
    model.model.visual.requires_grad_(False)
    with torch.no_grad():
        # The shipped model is sure of its answers. Smaller logits make it explore.
        model.model.language_model.norm.weight.mul_(0.3)
    optimizer = torch.optim.SGD((value for value in model.parameters() if value.requires_grad), lr=0.01)
    for seed in range(steps):
        engine.begin_weight_update()
        # Empties the engine's caches too: what the old weights have computed, and what was kept of it.
        engine.update_weights_from_tensor([(name, value.detach()) for name, value in model.state_dict().items()])
        engine.end_weight_update()
        trajectories = branching(seed, num_branches=group, num_turns=turns, questions_per_turn=1, mix=QUESTIONS)
        yield train(model, optimizer, roll_out(engine, processor, trajectories))


def main() -> None:
    """Two steps with groups of 8; print how far the ratios are from 1."""
    if not cpu_mode.is_gpu_present():
        cpu_mode.enable()
    import sglang

    options = {"model_path": str(MODEL), "dtype": "float32", "log_level": "error", "max_total_tokens": 12_000}
    exact = {"enable_precise_embedding_interpolation": True, "kv_policy": "star", "kv_budget": 0.1}
    engine = sglang.Engine(**cpu_mode.cpu_engine_kwargs(**options, **exact))
    model = AutoModelForImageTextToText.from_pretrained(MODEL, dtype=torch.float32)
    processor = AutoProcessor.from_pretrained(MODEL)
    try:
        for step in improve(engine, model, processor, group=8, turns=3, steps=2):
            ratios = f"{step.worst_masked:.1e} of 1 with the masks, {step.worst_unmasked:.1e} without"
            print(f"ratios: within {ratios}; reward {step.reward:.2f}", flush=True)
    finally:
        engine.shutdown()


if __name__ == "__main__":
    main()
