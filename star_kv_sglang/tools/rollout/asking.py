"""Asks the served model for a branch's next words, and waits for a server that is being restarted."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import httpx

from star_kv_sglang.tools.chat import ChatClient, Completion, Message, RequestError, ServerGoneError, UnavailableError
from star_kv_sglang.tools.rollout.pool import FULL, policy_of
from star_kv_sglang.tools.rollout.settings import RolloutSettings

_POLL_S: Final = 0.5
_ABORTED: Final = "abort"
"""SGLang's finish reason of requests that it drops when it ends."""


@dataclass(frozen=True, slots=True)
class Asked:
    """An answer, and the seconds that it did not take: those for which others, or the server, were waited for."""

    completion: Completion
    waiting_s: float


@dataclass(slots=True)
class _Origin:
    """The first branch of one origin asks alone, so that the others find its prompt in the server's cache."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    asked: bool = False


class Model:
    """The served model, as all branches of a rollout ask it.

    Args:
        client: Of the server.
        policy: The server's KV policy.
        settings: Of the rollout.
        max_tokens: Longest reply.
        on_wait: Told, once each time, that the server cannot be reached.
    """

    def __init__(
        self,
        client: ChatClient,
        policy: str,
        settings: RolloutSettings,
        max_tokens: int,
        on_wait: Callable[[str], None],
    ) -> None:
        self._client = client
        self._has_policy = policy != FULL
        self._settings = settings
        self._max_tokens = max_tokens
        self._on_wait = on_wait
        self._origins: defaultdict[str, _Origin] = defaultdict(_Origin)
        self._gone_since: float | None = None

    @classmethod
    async def of(
        cls,
        client: ChatClient,
        settings: RolloutSettings,
        max_tokens: int,
        on_wait: Callable[[str], None],
    ) -> Model:
        """The model of a server.

        Raises:
            ChatError: The server cannot be reached, or answers in another form.
            RequestError: A budget is asked for, and the server has no KV policy.
        """
        policy = policy_of(await client.server_info())
        if settings.kv_budget is not None and policy == FULL:
            raise RequestError(
                f"a budget of {settings.kv_budget:g} needs a server with a KV policy, and {client.base_url} has none; "
                "leave the budget out, or start it with star-kv serve --kv-policy star"
            )
        return cls(client, policy, settings, max_tokens, on_wait)

    async def ask(self, messages: Sequence[Message], *, seed: int, origin: str | None = None) -> Asked:
        """Ask once.

        Args:
            messages: The conversation.
            seed: Of the sampling.
            origin: Set where other branches ask the same: the first one goes ahead, and what it leaves in the
                server's cache belongs to all.

        Raises:
            RequestError: The server refuses this request.
            ServerGoneError: The server cannot be reached, and all patience is used up.
        """
        started = time.perf_counter()
        if origin is None or self._origins[origin].asked:
            return await self._ask(messages, seed, share=origin is not None, started=started)
        async with self._origins[origin].lock:
            # Those that have waited go at the same time.
            if not self._origins[origin].asked:
                asked = await self._ask(messages, seed, share=True, started=started)
                self._origins[origin].asked = True
                return asked
        return await self._ask(messages, seed, share=True, started=started)

    async def _ask(self, messages: Sequence[Message], seed: int, *, share: bool, started: float) -> Asked:
        while True:
            waiting_s = time.perf_counter() - started
            try:
                completion = await self._client.chat(
                    messages,
                    max_tokens=self._max_tokens,
                    model=self._settings.model,
                    custom_params=self._wishes(share=share),
                    temperature=self._settings.temperature,
                    seed=seed if self._settings.temperature > 0 else None,
                )
            except UnavailableError as error:
                await self._wait_after(ServerGoneError(f"{error}; the server or a proxy before it may be away"))
                continue
            except ServerGoneError as error:
                # A server that refuses us will not change its mind.
                if not isinstance(error.__cause__, httpx.TransportError):
                    raise
                await self._wait_after(error)
                continue
            if completion.finish_reason == _ABORTED:
                await self._wait_after(ServerGoneError(f"{self._client.base_url} has dropped a request"))
                continue
            self._gone_since = None
            return Asked(completion, waiting_s + completion.retrying_s)

    def _wishes(self, *, share: bool) -> dict[str, Any] | None:
        """The request's ``custom_params``; other servers than ours refuse or ignore them."""
        if not self._has_policy:
            return None
        wishes: dict[str, Any] = {}
        if share:
            wishes["kv_share"] = True
        if self._settings.kv_budget is not None:
            wishes["kv_budget"] = self._settings.kv_budget
        return wishes or None

    async def _wait_after(self, error: ServerGoneError) -> None:
        now = time.monotonic()
        if self._gone_since is None:
            self._gone_since = now
            self._on_wait(f"{error}; waiting up to {self._settings.patience_s:g} s for it")
        if now - self._gone_since > self._settings.patience_s:
            raise error
        await asyncio.sleep(_POLL_S)
