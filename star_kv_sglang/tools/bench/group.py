"""A group: several answers to one prompt, as reinforcement learning samples them. How long until all have begun?"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import httpx

from star_kv_sglang.tools.bench.serve.conversation import SCREEN, branch_name
from star_kv_sglang.tools.bench.serve.errors import ServeBenchError

_SILENCE_S: Final = 300.0


@dataclass(frozen=True)
class Group:
    """What is asked.

    Attributes:
        answers: Of a group.
        screens: Screenshots in a prompt; no two prompts have one in common.
        repeats: Pairs of one answer and one group that are measured.
        answer_tokens: Length of an answer.
    """

    answers: int = 8
    screens: int = 5
    repeats: int = 6
    answer_tokens: int = 8

    @property
    def num_screenshots(self) -> int:
        """Different screenshots that a measurement shows, its warm-up included."""
        return 2 * (1 + self.repeats) * self.screens


def first_tokens_s(http: httpx.Client, text: str, images: Sequence[str], num_answers: int, answer_tokens: int) -> float:
    """Seconds from sending a prompt until each of its answers has its first token.

    Args:
        http: At the server.
        text: The prompt, with a placeholder for each screenshot.
        images: Data URLs.
        num_answers: Answers that are asked for.
        answer_tokens: Length of each.

    Raises:
        ServeBenchError: The server refused the prompt, or an answer never began.
    """
    sampling: dict[str, Any] = {"max_new_tokens": answer_tokens, "temperature": 1.0, "ignore_eos": True}
    if num_answers > 1:
        sampling["n"] = num_answers
    body = {"text": text, "image_data": list(images), "stream": True, "sampling_params": sampling}
    begun: dict[int, float] = {}
    sent = time.perf_counter()
    with http.stream("POST", "/generate", json=body) as answer:
        if answer.is_error:
            raise ServeBenchError(f"/generate answered {answer.status_code}: {answer.read()!r}")
        for line in answer.iter_lines():
            if not line.startswith("data: {"):
                continue
            event = json.loads(line[len("data: ") :])
            if "error" in event:
                raise ServeBenchError(f"/generate: {event['error']}")
            if event["meta_info"]["completion_tokens"] > 0:
                begun.setdefault(event.get("index", 0), time.perf_counter() - sent)
    if len(begun) != num_answers:
        raise ServeBenchError(f"{len(begun)} of {num_answers} answers began")
    return max(begun.values())


def measure(
    url: str, group: Group, screenshots: Sequence[str], on_prompt: Callable[[int], None] = lambda number: None
) -> Mapping[int, list[float]]:
    """One answer and a group in turns, each to a prompt that the server has not seen.

    Args:
        url: The server.
        group: What is asked.
        screenshots: `Group.num_screenshots` data URLs.
        on_prompt: Told the number of each prompt before it is sent.

    Returns:
        Seconds until all first tokens, by the number of answers. The first of each compiles what is compiled late and
        is left out.
    """
    sizes = (1, group.answers)
    times: dict[int, list[float]] = {size: [] for size in sizes}
    with httpx.Client(base_url=url, timeout=_SILENCE_S) as http:
        for number in range(2 * (1 + group.repeats)):
            size = sizes[number % 2]
            on_prompt(number)
            images = screenshots[number * group.screens : (number + 1) * group.screens]
            text = (
                f"<|im_start|> user {branch_name(number)} {SCREEN * group.screens} w50 <|im_end|><|im_start|> assistant"
            )
            taken = first_tokens_s(http, text, images, size, group.answer_tokens)
            if number >= len(sizes):
                times[size].append(taken)
    return times
