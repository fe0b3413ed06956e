"""A mixed load: branches, forks, aborts, long prompts and bursts of long answers, at the same time on one engine."""

from __future__ import annotations

import asyncio
import random
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from tests.engine.conversation import Answer, Chat, question, screenshot
from tests.engine.harness import TestEngine

TOKEN_PIXELS = 32
COMPARED_TURNS = 4
NUM_ANSWER = 6
BURST_SIZE, BURST_TOKENS = 24, 2000
"""Answers that the pool has room to begin and none to end: some requests are put back."""
LARGEST_PAGE = 64
LONG_PROMPTS = (9_000, 24_000, 40_000)
WEIGHTS = {"branch": 32, "fork": 20, "abort": 20, "text": 8, "burst": 1, "long": 2}


@dataclass(frozen=True)
class Turn:
    """One turn of a conversation that is compared.

    Attributes:
        name: Conversation and turn.
        tokens, logprobs: What was generated.
        clean: The prompt found in the tree all that the prompt before left there, and so did all earlier ones, and none
            was put back: the engine then computed from the same state, whatever else was running.
    """

    name: str
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    clean: bool


@dataclass
class Load:
    """What the clients have seen.

    Attributes:
        max_requests: Requests that are sent at most.
        end: When the last one may be sent, on `time.monotonic`'s clock.
        longest: Most tokens of a prompt.
        burst_tokens: Length of a long answer.
        done: Requests by how they ended.
        kinds: Requests by what they were part of.
        turns: Turns that are compared, by name.
    """

    engine: TestEngine
    run_name: str
    seed: int
    max_requests: int
    end: float
    longest: int = LONG_PROMPTS[-1]
    burst_tokens: int = BURST_TOKENS
    done: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    turns: dict[str, Turn] = field(default_factory=dict)
    num_sent: int = 0

    @property
    def open(self) -> bool:
        """Whether more requests may be sent."""
        return self.num_sent < self.max_requests and time.monotonic() < self.end

    async def ask(self, kind: str, chat: Chat, num_tokens: int, **options: Any) -> Answer:
        """Send a request and note how it ended."""
        self.num_sent += 1
        self.kinds[kind] += 1
        answer = await self.engine.answer_soon(chat, num_tokens, **options)
        self.done[answer.reason["type"]] += 1
        self.done["put back"] += answer.retractions
        return answer

    async def run(self, num_clients: int, num_compared: int) -> None:
        """Clients that do one thing after another, the compared conversations first."""
        queue = list(range(num_compared))

        async def client(number: int) -> None:
            rng = random.Random(1000 * self.seed + number)
            while self.open:
                if queue and number % 3 == 0:
                    await self.compared(queue.pop(0))
                else:
                    name = rng.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
                    await getattr(self, name)(rng)

        watch = asyncio.ensure_future(self._watch())
        await _all(client(number) for number in range(num_clients))
        watch.cancel()

    async def _watch(self) -> None:
        """Say from time to time how far it is, so that a run that is cut off tells something."""
        started = time.monotonic()
        while True:
            await asyncio.sleep(10)
            line = f"{time.monotonic() - started:.0f} s: {self.num_sent} sent, {dict(self.done)}, {dict(self.kinds)}"
            sys.stderr.write(f"{self.run_name} {line}\n")

    async def compared(self, number: int) -> None:
        """A conversation that shares nothing with any other but the words before its first screenshot."""
        chat, hit, clean = Chat(), 0, True
        for turn in range(COMPARED_TURNS):
            seed = 10_000 + 10 * number + turn
            chat = chat.ask(question(seed), screen(seed))
            name = f"{number}-{turn}"
            rid = f"{self.run_name}-{name}"
            answer = await self.ask("compared", chat, NUM_ANSWER, logprob_from=-1, rid=rid)
            clean = clean and answer.retractions == 0 and answer.cached >= hit
            self.turns[name] = Turn(name, answer.token_ids, answer.logprobs, clean)
            hit = answer.prompt_len // LARGEST_PAGE * LARGEST_PAGE
            chat = chat.reply(answer.text)

    async def branch(self, rng: random.Random) -> None:
        """Some turns with screenshots of many sizes."""
        chat = Chat()
        for _ in range(rng.randint(2, 6)):
            if not self.open:
                return
            seed = rng.randrange(10**6)
            images = [screen(seed + i) for i in range(rng.choice((1, 1, 1, 2)))]
            chat = chat.ask(question(seed), *images)
            answer = await self.ask("branch", chat, rng.choice((1, 4, 16)))
            chat = chat.reply(answer.text)

    async def fork(self, rng: random.Random) -> None:
        """A history that several branches continue at the same time, sometimes asked to stay whole."""
        seed = rng.randrange(10**6)
        share: dict[str, Any] = {"custom_params": {"kv_share": True}} if rng.random() < 0.5 else {}
        chat = Chat().ask(question(seed), screen(seed))
        chat = chat.reply((await self.ask("fork", chat, 4, **share)).text)

        async def go(number: int) -> None:
            branch = chat
            for turn in range(2):
                branch = branch.ask(question(seed + number), screen(seed + 7 * number + turn))
                branch = branch.reply((await self.ask("fork", branch, 6)).text)

        await _all(go(number) for number in range(rng.randint(2, 4)))

    async def abort(self, rng: random.Random) -> None:
        """A request that is dropped in the queue, in mid-prefill or in mid-decode."""
        seed = rng.randrange(10**6)
        rid = f"abort-{seed}-{self.num_sent}"
        chat = Chat().ask(question(seed, rng.choice((5, 3000))), screen(seed), screen(seed + 1))
        task = asyncio.ensure_future(self.ask("abort", chat, 300, rid=rid))
        await asyncio.sleep(rng.choice((0.0, 0.03, 0.1, 0.3)))
        while not task.done():
            self.engine.abort(rid)
            await asyncio.wait({task}, timeout=0.5)
        task.result()

    async def text(self, rng: random.Random) -> None:
        """No screenshot at all."""
        await self.ask("text", Chat().ask(question(rng.randrange(10**6), 200)), 32)

    async def burst(self, rng: random.Random) -> None:
        """Long answers at the same time, for which the pool has no room."""
        seed = rng.randrange(10**6)
        chats = [Chat().ask(question(seed + n), screen(seed + n)) for n in range(BURST_SIZE)]
        await _all(self.ask("burst", chat, self.burst_tokens) for chat in chats)

    async def long(self, rng: random.Random) -> None:
        """A prompt of many chunks, with screenshots in the middle and at the end."""
        seed, length = rng.randrange(10**6), min(rng.choice(LONG_PROMPTS), self.longest)
        chat = (
            Chat().ask(question(seed, length // 2), screen(seed)).ask(question(seed + 1, length // 2), screen(seed + 1))
        )
        await self.ask("long", chat, 4)


def screen(seed: int) -> Image.Image:
    """A screenshot of a size of its own, 64 to 400 tokens."""
    rng = random.Random(seed)
    return screenshot(seed, rng.randint(8, 20), rng.randint(8, 20), TOKEN_PIXELS)


async def _all(coroutines: Sequence[Awaitable[Any]] | Any) -> None:
    await asyncio.gather(*coroutines)
