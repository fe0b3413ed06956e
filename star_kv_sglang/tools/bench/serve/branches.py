"""Branches: how many live at the same time in a pool of a fixed size, before the first of them loses a token.

A branch is one prompt with all of its screenshots and one answer; then it waits, as an agent does while its screen
changes. Letting all of them decode meanwhile would measure how fast answers fill the pool, not what histories take.
"""

from __future__ import annotations

import asyncio
from statistics import fmean
from typing import Final

from star_kv_sglang.tools.bench.serve.context import Context
from star_kv_sglang.tools.bench.serve.conversation import branch
from star_kv_sglang.tools.bench.serve.metrics import PoolState

_MOST_BRANCHES: Final = 500


async def run_branches(context: Context) -> None:
    """Start branches one after the other until a live one is evicted or a request is put back."""
    context.start_clock()
    client, sizes = context.client, context.sizes
    await client.flush()
    before = await client.pool()
    used: list[int] = []
    history = 0
    end = ""
    for number in range(_MOST_BRANCHES):
        talk = branch(number, context.screens, sizes.branch_screens)
        try:
            answer = await asyncio.wait_for(
                client.ask(talk.prompt, max_new_tokens=sizes.answer_tokens), max(0.1, context.seconds_left)
            )
        except TimeoutError:
            end = f"no time left after {sizes.max_seconds:g} s"
            break
        pool = await client.pool()
        history = answer.prompt_tokens
        used.append(pool.num_used)
        end = lost(before, pool)
        if end:
            break
        context.say(f"{number + 1} branches, {pool.num_used} of {pool.num_slots} slots")
    is_partial = not lost(before, await client.pool())
    # the branch that cost another one its tokens is there, the other one is not
    alive = len(used) - (0 if is_partial else 1)
    at: dict[str, int | bool | str] = {
        "history": history,
        "partial": is_partial,
        "note": end or f"stopped at {_MOST_BRANCHES} branches",
    }
    context.add(
        context.figure("branches_alive", alive, **at),
        context.figure("slots_of_pool", before.num_slots, **at),
        context.figure("slots_peak", max(used, default=None), **at),
        context.figure("slots_mean", fmean(used) if used else None, **at),
        context.figure("slots_per_branch", (used[alive - 1] - used[0]) / (alive - 1) if alive > 1 else None, **at),
    )


def lost(before: PoolState, now: PoolState) -> str:
    """What happened to a live branch since ``before``; empty when nothing did."""
    if now.num_retracted > before.num_retracted:
        return "a request was retracted"
    if now.num_evicted > before.num_evicted:
        return f"{now.num_evicted - before.num_evicted} tokens of a live branch were evicted"
    return ""
