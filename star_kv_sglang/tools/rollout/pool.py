"""What a running server says about its KV pool.

Stock SGLang publishes free slots at ``/metrics`` (with ``--enable-metrics``). A server with a KV policy adds the
split into shared, private and pruned tokens under ``internal_states[0]["star_kv"]`` of ``/server_info``.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from star_kv_sglang.errors import StarKVError
from star_kv_sglang.tools.chat import ChatClient, ChatError
from star_kv_sglang.tools.rollout.errors import first_error

POLICY_FIELD = "kv_policy"
FULL = "full"

_GAUGE = re.compile(r"^sglang:(max_total_num_tokens|kv_available_tokens)\{[^}]*\} (\S+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class PoolSample:
    """The pool at one moment. What the server does not tell is None.

    Attributes:
        time_s: seconds on `time.monotonic`'s clock.
        resident_tokens: slots in use, of running requests and of the radix tree together.
        shared_tokens, private_tokens: live tokens of nodes that several branches use, and of the rest.
        pruned_tokens: tokens pruned since the server started.
    """

    time_s: float
    resident_tokens: int | None
    shared_tokens: int | None = None
    private_tokens: int | None = None
    pruned_tokens: int | None = None


def policy_of(server_info: dict[str, Any] | None) -> str:
    """The KV policy that a server runs; ``full`` for every server that has none."""
    return FULL if server_info is None else str(server_info.get(POLICY_FIELD) or FULL)


def resident_tokens(metrics: str | None) -> int | None:
    """Slots in use according to a Prometheus page; None when it does not tell."""
    gauges = {name: float(value) for name, value in _GAUGE.findall(metrics or "")}
    if len(gauges) < 2:
        return None
    return int(gauges["max_total_num_tokens"] - gauges["kv_available_tokens"])


async def sample(client: ChatClient) -> PoolSample:
    """Asks the server for its pool now."""
    info = await client.server_info()
    resident = resident_tokens(await client.metrics())
    states = (info or {}).get("internal_states") or [{}]
    split = states[0].get("star_kv") or {}
    return PoolSample(
        time_s=time.monotonic(),
        resident_tokens=resident,
        shared_tokens=split.get("num_shared_tokens"),
        private_tokens=split.get("num_private_tokens"),
        pruned_tokens=split.get("num_pruned_tokens"),
    )


@asynccontextmanager
async def sampling(
    client: ChatClient, *, interval_s: float = 0.5, through_restarts: bool = False
) -> AsyncIterator[list[PoolSample]]:
    """Samples the pool while the body runs; the list grows meanwhile and ends with a sample taken after the body.

    Args:
        client: Of the server.
        interval_s: Seconds between samples.
        through_restarts: Leave out later moments in which the server does not answer.

    Raises:
        ChatError: The server does not answer; the body is cancelled.
        StarKVError: As the body raises it, alone and not in a group.
    """
    samples = [await sample(client)]

    async def add() -> None:
        try:
            samples.append(await sample(client))
        except ChatError:
            if not through_restarts:
                raise

    async def keep_sampling() -> None:
        while True:
            await asyncio.sleep(interval_s)
            await add()

    try:
        async with asyncio.TaskGroup() as group:
            task = group.create_task(keep_sampling())
            yield samples
            task.cancel()
    except* StarKVError as errors:
        raise first_error(errors) from None
    await add()
