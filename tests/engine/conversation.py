"""What a client keeps of a conversation: text with image marks, screenshots, and the engine's answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from PIL import Image

COLS, ROWS = 6, 6
"""Of the screenshots of `turn`."""
NUM_VISUAL = COLS * ROWS

_IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"
_WORDS = (
    "click",
    "read",
    "recall",
    "here",
    "red",
    "blue",
    "green",
    "teal",
    "A",
    "B",
    "K",
    "x12",
    "y20",
    "step1",
    "step2",
)


@dataclass(frozen=True)
class Answer:
    """What a request returned.

    Attributes:
        text: Generated text.
        token_ids: Generated ids.
        logprobs: Log-probabilities of the generated ids; empty when not asked for.
        input_logprobs: (log-probability, id) of prompt tokens from ``logprob_start_len`` on; the first has none.
        cached: Tokens of the prompt that the tree had.
        prompt_len: Tokens of the prompt.
        reason: Why it ended: ``{"type": "length"}`` and so on.
        retractions: How often the scheduler put it back.
        meta: All that the engine says of it.
    """

    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    input_logprobs: tuple[tuple[float | None, int], ...]
    cached: int
    prompt_len: int
    reason: Mapping[str, Any]
    retractions: int = 0
    meta: Mapping[str, Any] = field(default_factory=dict)

    @property
    def num_stored(self) -> int:
        """Tokens of prompt and answer whose K and V exist: nobody has computed them for the newest one."""
        return self.prompt_len + len(self.token_ids) - 1

    @classmethod
    def of(cls, raw: Mapping[str, Any]) -> Answer:
        """Read SGLang's dictionary."""
        meta = raw["meta_info"]
        return cls(
            text=raw["text"],
            token_ids=tuple(raw["output_ids"]),
            logprobs=tuple(entry[0] for entry in meta.get("output_token_logprobs") or ()),
            input_logprobs=tuple((entry[0], entry[1]) for entry in meta.get("input_token_logprobs") or ()),
            cached=meta.get("cached_tokens", 0),
            prompt_len=meta.get("prompt_tokens", 0),
            reason=meta["finish_reason"],
            retractions=meta.get("num_retractions") or 0,
            meta=meta,
        )


@dataclass(frozen=True)
class Chat:
    """A conversation so far, as the client keeps it: text with image marks, and the images."""

    text: str = ""
    images: tuple[Image.Image, ...] = ()

    def ask(self, question: str, *images: Image.Image) -> Chat:
        """The conversation with a user's turn, ready to be answered."""
        marks = " ".join(_IMAGE for _ in images)
        return Chat(
            f"{self.text}<|im_start|>user  {marks} {question}<|im_end|><|im_start|>assistant ", self.images + images
        )

    def reply(self, answer: str) -> Chat:
        """The conversation with the model's answer."""
        return replace(self, text=f"{self.text} {answer} <|im_end|>")


def screenshot(seed: int, cols: int, rows: int, token_pixels: int) -> Image.Image:
    """A screen of rectangles on a plain background, ``cols`` x ``rows`` visual tokens large.

    Args:
        seed: Another seed, another picture.
        cols: Tokens in a row.
        rows: Rows of tokens.
        token_pixels: Pixels that a token covers along each side: 28 for Qwen2-VL and Qwen2.5-VL, 32 for Qwen3-VL.
    """
    rng = np.random.default_rng(seed)
    width, height = cols * token_pixels, rows * token_pixels
    pixels = np.full((height, width, 3), rng.integers(180, 255), dtype=np.uint8)
    for _ in range(6):
        x, y = int(rng.integers(0, width - 8)), int(rng.integers(0, height - 8))
        w, h = int(rng.integers(8, width // 2)), int(rng.integers(8, height // 2))
        pixels[y : y + h, x : x + w] = rng.integers(0, 255, 3)
    return Image.fromarray(pixels)


def question(seed: int, num_words: int = 4) -> str:
    """Some words of the tokenizer."""
    rng = np.random.default_rng(seed)
    return " ".join(rng.choice(_WORDS, num_words))


def turn(chat: Chat, seed: int, cols: int = COLS, rows: int = ROWS) -> Chat:
    """The conversation with another screenshot and question."""
    return chat.ask(question(seed), screenshot(seed, cols, rows, 28))
