"""Turns: branches of an agent that share their first turns and then go on at the same time, each on its own."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from statistics import fmean
from typing import Final

from star_kv_sglang.tools.bench.serve.client import Stream
from star_kv_sglang.tools.bench.serve.context import Context
from star_kv_sglang.tools.bench.serve.conversation import Conversation, branch
from star_kv_sglang.tools.bench.serve.statistic import percentile

_ROOT: Final = 20_000
_SAMPLE_S: Final = 0.25


async def run_turns(context: Context) -> None:
    """Run the shared turns once, then all branches, and report the second part."""
    context.start_clock()
    client, sizes = context.client, context.sizes
    await client.flush()
    talk = branch(_ROOT, context.screens, 1)
    for turn in range(sizes.turns_shared):
        answer = await client.ask(talk.prompt, max_new_tokens=sizes.answer_tokens, share=True)
        talk = talk.answered(answer.text)
        if turn + 1 < sizes.turns_shared:
            talk = talk.shown(context.screens[turn + 1])
    before = await client.policy_report()
    started = time.perf_counter()
    async with _sampled_slots(context) as slots:
        per_branch = await asyncio.gather(*(_branch(context, talk, number) for number in range(sizes.turns_branches)))
    wall_s = time.perf_counter() - started
    after = await client.policy_report()
    answers = [answer for branch_answers in per_branch for answer in branch_answers]
    wanted = sizes.turns_branches * (sizes.turns_turns - sizes.turns_shared)
    if not answers:
        context.add(context.figure("turns_per_s", None, partial=True, note="no time for one turn"))
        return
    at: dict[str, int | bool | str] = {
        "history": max(answer.prompt_tokens for answer in answers),
        "batch": sizes.turns_branches,
        "partial": len(answers) < wanted,
        "note": f"{sizes.turns_turns} turns, {sizes.turns_shared} shared",
    }
    times = [1000 * answer.ttft_s for answer in answers]
    hit = sum(answer.cached_tokens for answer in answers) / sum(answer.prompt_tokens for answer in answers)
    context.add(
        context.figure("turns_per_s", len(answers) / wall_s, **at),
        context.figure("hit_rate", hit, **at),
        context.figure("ttft_ms_p50", percentile(times, 0.5), **at),
        context.figure("ttft_ms_p95", percentile(times, 0.95), **at),
        context.figure("slots_peak", max(slots), **at),
        context.figure("slots_mean", fmean(slots), **at),
    )
    # one counter per kind of event since the start of the server
    for name in sorted(set(before) & set(after)):
        if name in ("num_prunes", "num_pruned_tokens", "num_skipped_segments") or name.endswith("_ms"):
            context.add(context.figure(f"{name}_per_turn", (after[name] - before[name]) / len(answers), **at))


async def _branch(context: Context, talk: Conversation, number: int) -> list[Stream]:
    sizes = context.sizes
    answers: list[Stream] = []
    for turn in range(sizes.turns_shared, sizes.turns_turns):
        if context.seconds_left < 0:
            break
        talk = talk.shown(context.screens[(turn + 3 * number) % len(context.screens)], number=number)
        answer = await context.client.ask(talk.prompt, max_new_tokens=sizes.answer_tokens)
        answers.append(answer)
        context.say(f"branch {number}, turn {turn + 1} of {sizes.turns_turns}")
        talk = talk.answered(answer.text)
    return answers


@asynccontextmanager
async def _sampled_slots(context: Context) -> AsyncIterator[list[int]]:
    """Slots in use while the body runs; the last one is taken after it."""
    slots: list[int] = []

    async def sample() -> None:
        while True:
            slots.append((await context.client.pool()).num_used)
            await asyncio.sleep(_SAMPLE_S)

    task = asyncio.create_task(sample())
    try:
        yield slots
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
    slots.append((await context.client.pool()).num_used)
