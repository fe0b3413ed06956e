"""Random histories on a real engine with a small pool, under SGLang's own leak checks and a census of the slots."""

from __future__ import annotations

import asyncio
import random
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.engine.conversation import Answer, Chat, question, screenshot
from tests.engine.harness import TestEngine, running_engine

pytestmark = pytest.mark.slow

NUM_OPERATIONS = 300
POOL = 400
MAX_IN_FLIGHT = 5
MAX_TURNS = 5
IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"
USER_MESSAGE = re.compile(r"<\|im_start\|>user .*?<\|im_end\|>", re.DOTALL)
WEIGHTS = {"new": 3, "extend": 6, "fork": 3, "abort": 2, "drain": 2, "flush": 1}


@dataclass
class History:
    """The client's side: what runs, and the conversations that can go on.

    Args:
        engine: The engine.
        rng: Chooses everything.
    """

    engine: TestEngine
    rng: random.Random
    running: dict[str, tuple[Chat, asyncio.Task[Answer]]] = field(default_factory=dict)
    chats: list[Chat] = field(default_factory=list)
    done: Counter[str] = field(default_factory=Counter)
    num_evictions_seen: int = 0

    async def step(self, number: int) -> None:
        """One random operation; then the engine must answer, and what has ended must have ended well."""
        names = list(WEIGHTS)
        name = self.rng.choices(names, [WEIGHTS[n] for n in names])[0]
        if name in ("extend", "fork") and not self.chats:
            name = "new"
        if name == "new":
            await self.start(number, self.turn(Chat()))
        elif name == "extend":
            await self.start(number, self.turn(self.chats.pop(self.rng.randrange(len(self.chats)))))
        elif name == "fork":
            await self.start(number, self.turn(self.rng.choice(self.chats)))
        elif name == "abort":
            await self.abort(number)
        else:
            await self.drain()
            if name == "flush":
                result = await self.engine.engine.tokenizer_manager.flush_cache(timeout_s=30)
                assert result.success
                assert (await self.engine.idle_stats())["num_used_pool_tokens"] == 0
        self.done[name] += 1
        await self.engine.stats_soon()
        self.collect()

    def turn(self, chat: Chat) -> Chat:
        """One turn more: mostly with a screenshot, out of few, so that prefixes meet."""
        seed = self.rng.randrange(6)
        if self.rng.random() < 0.2:
            return chat.ask(question(seed))
        return chat.ask(question(seed), screenshot(seed, 3 + seed % 3, 3 + seed % 2, 28))

    async def start(self, number: int, chat: Chat) -> None:
        """Send a prompt; wait for some others first when there are too many."""
        while len(self.running) >= MAX_IN_FLIGHT:
            await asyncio.wait({task for _, task in self.running.values()}, return_when=asyncio.FIRST_COMPLETED)
            self.collect()
        rid = f"operation-{number}"
        wishes = self.rng.choice((None, None, {"kv_image_window": 1}, {"kv_image_window": 2, "kv_window_rest": 0.3}))
        prompt = self.window(chat)
        sent = self.engine.queue(prompt, self.rng.choice((1, 2, 6, 20)), rid=rid, custom_params=wishes)
        self.running[rid] = (chat, await sent)

    def window(self, chat: Chat) -> Chat:
        """What is sent of a conversation: all of it, or, as many agents do it, no message with an old screenshot."""
        shown = [found for found in USER_MESSAGE.finditer(chat.text) if IMAGE in found[0]]
        if len(shown) < 2 or self.rng.random() < 0.5:
            return chat
        gone, text = shown[: self.rng.randrange(1, len(shown))], chat.text
        for found in reversed(gone):
            text = text[: found.start()] + text[found.end() :]
        return Chat(text, chat.images[sum(found[0].count(IMAGE) for found in gone) :])

    async def abort(self, number: int) -> None:
        """Abort something that was started a moment ago: in the queue, in mid-prefill or in mid-decode."""
        if not self.running:
            await self.start(number, self.turn(Chat()))
        await asyncio.sleep(self.rng.choice((0.0, 0.02, 0.1)))
        self.engine.abort(self.rng.choice(list(self.running)))

    async def drain(self) -> None:
        """Wait for everything; then every slot in use belongs to the tree."""
        if self.running:
            await asyncio.wait({task for _, task in self.running.values()}, timeout=120)
        self.collect()
        assert not self.running
        stats = await self.engine.idle_stats()
        assert stats["num_live_tokens"] <= POOL

    def collect(self) -> None:
        """Take note of what has ended."""
        for rid, (chat, task) in list(self.running.items()):
            if not task.done():
                continue
            del self.running[rid]
            answer = task.result()
            self.done[answer.reason["type"]] += 1
            self.num_evictions_seen += bool(chat.images) and answer.cached == 0
            if answer.reason["type"] == "length" and len(chat.images) < MAX_TURNS:
                self.chats.append(chat.reply(answer.text))


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param({"chunked_prefill_size": 32}, id="first_come_first_served-small_chunks"),
        pytest.param(
            {"schedule_policy": "lpm", "chunked_prefill_size": 64, "enable_mixed_chunk": True},
            id="longest_prefix_first-mixed_with_decoding",
        ),
    ],
)
def test_no_slot_is_lost(checkpoint: Callable[[str], Path], arguments: dict[str, object]) -> None:
    with running_engine(
        checkpoint("qwen2_5_vl"), kv_policy="star", kv_budget=0.2, max_total_tokens=POOL, kv_recognise_windows="all",
        **arguments,
    ) as engine:  # fmt: skip
        history = History(engine, random.Random(7))

        async def play() -> dict[str, int]:
            for number in range(NUM_OPERATIONS // 2):
                await history.step(number)
            await history.drain()
            return await engine.idle_stats()

        stats = engine.run(play())
    assert stats["num_prunes"] > 20
    assert stats["num_pruned_tokens"] > 100
    # How many depends on what has ended when a client leaves screenshots out: 3 on an H100, more on a slow machine.
    assert stats["num_recognised_windows"] > 0
    assert set(WEIGHTS) <= set(history.done), history.done
    assert history.done["length"] > 50
    assert history.done["abort"] > 0
