"""The agents: branches that take turns, each with a new screenshot, and what was seen of every turn."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import httpx

from star_kv_sglang.tools.bench.fleet.history import History
from star_kv_sglang.tools.bench.serve.errors import ServeBenchError

_SCREEN = "<|vision_start|><|image_pad|><|vision_end|>"
_SHARED_SEED = 1_000_000


@dataclass(frozen=True)
class Load:
    """What a fleet does.

    Attributes:
        branches: Agents at the same time.
        turns: Of each.
        history: Screenshots that are sent again.
        group_size: Branches that begin as one: their first ``shared`` turns are the same.
        shared: These turns.
        answer_tokens: Of every turn.
        think_s: Seconds between an answer and the next screenshot.
        played: Turns that are taken, where it is not all of them; screenshots stay those of the whole fleet.
    """

    branches: int
    turns: int
    history: History
    group_size: int = 1
    shared: int = 0
    answer_tokens: int = 64
    think_s: float = 0.0
    played: int | None = None

    @property
    def num_played(self) -> int:
        """Turns that each branch takes."""
        return self.turns if self.played is None else min(self.played, self.turns)

    def seed(self, branch: int, turn: int) -> int:
        """Names the screenshot that a branch sees in a turn."""
        if turn < self.shared:
            return _SHARED_SEED + branch // self.group_size * self.turns + turn
        return branch * self.turns + turn

    def seeds(self) -> list[int]:
        """All screenshots of the fleet."""
        return sorted({self.seed(branch, turn) for branch in range(self.branches) for turn in range(self.turns)})


@dataclass(frozen=True)
class Turn:
    """One turn as the client saw it.

    Attributes:
        start_s, first_s, end_s: When it was sent, when its first token and its last came, on one clock.
        prompt_tokens, cached_tokens: As the server counts them.
        sent_bytes: Length of the request's body.
    """

    start_s: float
    first_s: float
    end_s: float
    prompt_tokens: int
    cached_tokens: int
    sent_bytes: int


class Branch:
    """One agent's conversation.

    Args:
        number: Which agent.
        load: What the fleet does.
        screenshots: Data URLs by seed.
    """

    def __init__(self, number: int, load: Load, screenshots: Mapping[int, str]) -> None:
        self._number, self._load, self._screenshots = number, load, screenshots
        self._answers: list[str] = []

    def body(self, turn: int, *, answer_tokens: int | None = None) -> bytes:
        """The request of a turn. A dropped screenshot takes the user's message around it along."""
        load = self._load
        parts, images = [], []
        for index in range(turn + 1):
            if index >= load.history.first_shown(turn):
                who = self._number // load.group_size if index < load.shared else self._number
                words = f"w{100 + index} w{200 + who % 700} w{10 + who // 700}"
                parts.append(f"<|im_start|> user {words} {_SCREEN} w50 w51 <|im_end|>")
                images.append(self._screenshots[load.seed(self._number, index)])
            if index < turn:
                parts.append(f"<|im_start|> assistant {self._answers[index]} <|im_end|>")
        sampling = {
            "temperature": 0,
            "max_new_tokens": answer_tokens or load.answer_tokens,
            "ignore_eos": True,
            "stream_interval": load.answer_tokens,
        }
        request = {
            "text": " ".join([*parts, "<|im_start|> assistant"]),
            "image_data": images,
            "sampling_params": sampling,
            "stream": True,
        }
        return json.dumps(request).encode()

    async def ask(self, http: httpx.AsyncClient, turn: int, *, again: bool = False) -> Turn:
        """Take a turn; with ``again`` one token of a turn that was taken before.

        Raises:
            ServeBenchError: The server refused it or broke off.
        """
        body = self.body(turn, answer_tokens=1 if again else None)
        start, first, text, meta = time.perf_counter(), 0.0, "", {}
        headers = {"content-type": "application/json"}
        try:
            async with http.stream("POST", "/generate", content=body, headers=headers) as response:
                if response.is_error:
                    raise ServeBenchError(f"/generate answered {response.status_code}: {(await response.aread())!r}")
                async for line in response.aiter_lines():
                    if not line.startswith("data: {"):
                        continue
                    event = json.loads(line[6:])
                    if "error" in event:
                        raise ServeBenchError(f"/generate: {event['error']}")
                    first = first or time.perf_counter()
                    text, meta = event["text"], event["meta_info"]
        except httpx.HTTPError as error:
            raise ServeBenchError(f"/generate broke off: {type(error).__name__}: {error}") from error
        if not again:
            self._answers.append(text.strip())
        end = time.perf_counter()
        return Turn(start, first, end, int(meta["prompt_tokens"]), int(meta["cached_tokens"]), len(body))


async def play(
    load: Load, http: httpx.AsyncClient, screenshots: Mapping[int, str], *, until_s: float, on_turn: Callable[[], None]
) -> tuple[list[Turn], list[Branch]]:
    """Let all branches take their turns.

    Args:
        load: What they do.
        http: The server.
        screenshots: Data URLs by seed.
        until_s: On `time.perf_counter`'s clock: no turn begins later.
        on_turn: Called behind every turn.

    Returns:
        The turns in the order in which they ended, and the branches.
    """
    turns: list[Turn] = []
    branches = [Branch(number, load, screenshots) for number in range(load.branches)]

    async def live(branch: Branch) -> None:
        for turn in range(load.num_played):
            if time.perf_counter() > until_s:
                return
            turns.append(await branch.ask(http, turn))
            on_turn()
            await asyncio.sleep(load.think_s)

    await asyncio.gather(*map(live, branches))
    return turns, branches
