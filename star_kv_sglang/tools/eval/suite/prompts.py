"""The conversation of a trajectory as token ids."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from star_kv_sglang.tools.rollout.trajectory import Trajectory

IMAGE_MARK = "<|image_pad|>"


class PromptWriter:
    """Writes prompts with the model's own chat template.

    Args:
        model: the checkpoint's folder.
    """

    def __init__(self, model: Path) -> None:
        from transformers import AutoTokenizer

        self._tokenizer: Any = AutoTokenizer.from_pretrained(model)

    def ids(self, trajectory: Trajectory, replies: Sequence[str], question: str) -> list[int]:
        """A prompt, with one image mark for each screenshot.

        Args:
            trajectory: what is shown, turn by turn.
            replies: the answers to the turns before; the first question of each was asked.
            question: asked in the turn behind them.
        """
        messages: list[dict[str, Any]] = []
        for index in range(len(replies) + 1):
            turn = trajectory.turns[index]
            text = question if index == len(replies) else turn.questions[0].text
            content = [{"type": "text", "text": turn.step}, {"type": "image"}, {"type": "text", "text": text}]
            messages.append({"role": "user", "content": content})
            if index < len(replies):
                messages.append({"role": "assistant", "content": replies[index]})
        text = self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        ids: list[int] = self._tokenizer(text).input_ids
        return ids
