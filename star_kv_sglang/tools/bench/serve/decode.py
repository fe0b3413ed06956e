"""Decode: milliseconds a step, with a given number of branches that all have the same length of history.

All requests of a batch are sent while the scheduler is held, so that none decodes while the screenshots of the others
are still being processed; then they are prefilled and decode together, each at its nominal length.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from star_kv_sglang.tools.bench.serve.client import Stream
from star_kv_sglang.tools.bench.serve.context import Context
from star_kv_sglang.tools.bench.serve.conversation import branch
from star_kv_sglang.tools.bench.serve.errors import ServeBenchError
from star_kv_sglang.tools.bench.serve.metrics import engine_ms_per_step

MAX_NEW_TOKENS = 2500
"""Longer than all windows of a history together: about 1,500 steps on an H100."""
STREAM_INTERVAL = 8
"""Tokens in a chunk: thousands of chunks a second would make the client the bottleneck."""
_POLL_S = 0.1
_SETTLE_S = 0.5
_SENDING_S = 0.5
_LONGEST_IMAGE_PAUSE_S = 10.0


def tokens_per_second(streams: Sequence[Stream], start_s: float, end_s: float) -> float:
    """Tokens a second of all streams together, each counted from its first to its last chunk inside the window.

    Raises:
        ServeBenchError: a stream has fewer than two chunks in the window.
    """
    rate = 0.0
    for stream in streams:
        inside = [chunk for chunk in stream.chunks if start_s <= chunk[0] <= end_s]
        if len(inside) < 2:
            raise ServeBenchError("a request had fewer than two chunks inside the window; lengthen it with --window")
        (first_s, first), (last_s, last) = inside[0], inside[-1]
        rate += (last - first) / (last_s - first_s)
    return rate


@dataclass
class Load:
    """The branches that decode now.

    Attributes:
        num_late: requests of the last growth that came when the others decoded already.
    """

    context: Context
    num_screens: int
    num_late: int = 0
    streams: list[Stream] = field(default_factory=list)
    tasks: list[asyncio.Task[Stream]] = field(default_factory=list)

    async def grow(self, batch: int) -> None:
        """Bring the number of branches to ``batch`` without letting any decode while others still arrive.

        Raises:
            ServeBenchError: they do not all run; there is no time left, or the pool holds fewer.
        """
        client = self.context.client
        self.num_late = 0
        expected = (await client.pool()).num_queued + batch - len(self.streams)
        for number in range(len(self.streams), batch):
            self.streams.append(Stream())
            talk = branch(number, self.context.screens, self.num_screens)
            self.tasks.append(
                asyncio.create_task(
                    client.ask(
                        talk.prompt,
                        max_new_tokens=MAX_NEW_TOKENS,
                        stream_interval=STREAM_INTERVAL,
                        into=self.streams[-1],
                    )
                )
            )
        await asyncio.sleep(_SENDING_S)
        await client.pause()
        try:
            await self._wait_until_queued(expected)
        finally:
            await client.resume()
        await self._wait_until_all_run()

    async def _wait_until_queued(self, expected: int) -> None:
        """Until all requests wait in the scheduler, or those that the server read too late are the only ones left."""
        best, since = -1, time.monotonic()
        while (queued := (await self.context.client.pool()).num_queued) < expected:
            self._check()
            if queued > best:
                best, since = queued, time.monotonic()
            elif time.monotonic() - since > _LONGEST_IMAGE_PAUSE_S:
                self.num_late = expected - queued
                return
            self.context.say(f"{len(self.streams) - expected + queued} of {len(self.streams)} branches sent")
            await asyncio.sleep(_POLL_S)

    async def _wait_until_all_run(self) -> None:
        while waiting := sum(1 for stream in self.streams if not stream.chunks):
            self._check()
            self.context.say(f"{len(self.streams) - waiting} of {len(self.streams)} branches prefilled")
            await asyncio.sleep(_POLL_S)

    def _check(self) -> None:
        for task in self.tasks:
            if task.done():
                task.result()
                raise ServeBenchError("a branch ended before it was measured")
        if self.context.seconds_left < 0:
            raise TimeoutError

    async def measure(self) -> tuple[float, float | None]:
        """Milliseconds a step over the window: seen by the client, and by the engine's own counters."""
        await asyncio.sleep(_SETTLE_S)
        context = self.context
        context.log.mark()
        start = time.perf_counter()
        chunks = [len(stream.chunks) for stream in self.streams]
        while (
            time.perf_counter() < start + context.sizes.window_s
            or min(len(stream.chunks) - before for stream, before in zip(self.streams, chunks, strict=True)) < 3
        ):
            self._check()
            await asyncio.sleep(_POLL_S)
        rate = tokens_per_second(self.streams, start, time.perf_counter())
        batch = len(self.streams)
        return 1000 * batch / rate, engine_ms_per_step(context.log.since_mark(), batch)

    async def stop(self) -> None:
        """End all requests and empty the tree."""
        await self.context.client.abort_all()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        await self.context.client.flush()


async def run_decode(context: Context) -> None:
    """Measure every history and batch size that the pool holds, the longest history first: time may end the phase."""
    context.start_clock()
    for num_screens in reversed(context.sizes.histories):
        load = Load(context, num_screens)
        try:
            await _run_history(context, load)
        finally:
            await load.stop()


async def _run_history(context: Context, load: Load) -> None:
    history = 0
    for batch in context.sizes.batches:
        reason = await _does_not_fit(context, load, batch)
        if not reason:
            try:
                await load.grow(batch)
                seen, counted = await load.measure()
            except TimeoutError:
                reason = f"no time left after {context.sizes.max_seconds:g} s"
        if reason:
            context.add(
                context.figure("ms_per_step", None, history=history, batch=batch, partial="time" in reason, note=reason)
            )
            return
        history = load.streams[0].prompt_tokens
        best = seen if counted is None else counted
        at: dict[str, int | bool | str] = {"history": history, "batch": batch}
        if load.num_late:
            at["note"] = f"{load.num_late} branches began later: the others are longer than their history"
        context.add(
            context.figure("ms_per_step", best, **at),
            context.figure("tokens_per_s", 1000 * batch / best, **at),
            context.figure("ms_per_step_client", seen, **at),
        )
        context.say(f"history {history}, batch {batch}: {best:.2f} ms a step")


async def _does_not_fit(context: Context, load: Load, batch: int) -> str:
    """Why the pool does not hold so many branches; empty when it does.

    A branch that is prefilled needs room for its whole history, whatever it keeps of it afterwards, and the scheduler
    admits it only with room for the longest answer.
    """
    if not load.streams:
        return ""
    pool = await context.client.pool()
    per_branch = pool.num_used / len(load.streams)
    needed = per_branch * (batch - 1) + load.streams[0].prompt_tokens + 2 * MAX_NEW_TOKENS
    if needed <= pool.num_slots:
        return ""
    return f"needs {needed:.0f} slots of {pool.num_slots}"
