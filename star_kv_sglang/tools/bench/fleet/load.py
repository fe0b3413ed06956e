"""The agents: branches that take turns, each with a new screenshot, and what was seen of every turn."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from star_kv_sglang.tools.bench.fleet.history import History
from star_kv_sglang.tools.bench.serve.client import EngineClient, Prompt, Stream
from star_kv_sglang.tools.bench.serve.conversation import SCREEN, branch_name

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

    def prompt(self, turn: int) -> Prompt:
        """What the agent sends in a turn. A dropped screenshot takes the user's message around it along."""
        load = self._load
        parts, images = [], []
        for index in range(turn + 1):
            if index >= load.history.first_shown(turn):
                who = self._number // load.group_size if index < load.shared else self._number
                parts.append(f"<|im_start|> user w{100 + index} {branch_name(who)} {SCREEN} w50 w51 <|im_end|>")
                images.append(self._screenshots[load.seed(self._number, index)])
            if index < turn:
                parts.append(f"<|im_start|> assistant {self._answers[index]} <|im_end|>")
        return Prompt(" ".join([*parts, "<|im_start|> assistant"]), images)

    async def ask(self, client: EngineClient, turn: int, *, again: bool = False) -> Stream:
        """Take a turn; with ``again`` one token of a turn that was taken before.

        Raises:
            ServeBenchError: The server refused it or broke off.
        """
        length = 1 if again else self._load.answer_tokens
        answer = await client.ask(self.prompt(turn), max_new_tokens=length, stream_interval=self._load.answer_tokens)
        answer.number = turn
        if not again:
            self._answers.append(answer.text.strip())
        return answer


async def play(
    load: Load, client: EngineClient, screenshots: Mapping[int, str], *, until_s: float, on_turn: Callable[[], None]
) -> tuple[list[Stream], list[Branch]]:
    """Let all branches take their turns.

    Args:
        load: What they do.
        client: Of the server.
        screenshots: Data URLs by seed.
        until_s: On `time.perf_counter`'s clock: no turn begins later.
        on_turn: Called behind every turn.

    Returns:
        The turns in the order in which they ended, and the branches.
    """
    turns: list[Stream] = []
    branches = [Branch(number, load, screenshots) for number in range(load.branches)]

    async def live(branch: Branch) -> None:
        for turn in range(load.num_played):
            if time.perf_counter() > until_s:
                return
            turns.append(await branch.ask(client, turn))
            on_turn()
            await asyncio.sleep(load.think_s)

    await asyncio.gather(*map(live, branches))
    return turns, branches
