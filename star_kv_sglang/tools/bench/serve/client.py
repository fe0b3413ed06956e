"""Requests to SGLang's own endpoint, streamed, with the times at which tokens arrive."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx

from star_kv_sglang.tools.bench.serve.errors import ServeBenchError
from star_kv_sglang.tools.bench.serve.metrics import PoolState, pool_state
from star_kv_sglang.tools.image_references import SentImages, raise_for_references


@dataclass(frozen=True, slots=True)
class Prompt:
    """One request.

    Attributes:
        text: the whole conversation, with a placeholder for each screenshot.
        screens: PNG files or data URLs, in the order of the placeholders.
    """

    text: str
    screens: Sequence[Path | str]


@dataclass(slots=True)
class Stream:
    """What has arrived of one answer.

    Attributes:
        chunks: (seconds on `time.perf_counter`'s clock, tokens until then), in order.
        text: the words until then.
        meta: the server's last report on the request.
        sent_s: when it was sent.
        done: whether it has ended.
        sent_bytes: length of the request's body, and of those before it that the server wanted with more bytes.
        live: slots that the prompt holds once it was pruned, where the server says so.
        number: of the turn in its conversation.
    """

    chunks: list[tuple[float, int]] = field(default_factory=list)
    text: str = ""
    meta: dict[str, Any] = field(default_factory=dict)
    sent_s: float = 0.0
    done: bool = False
    sent_bytes: int = 0
    live: int | None = None
    number: int = 0

    @property
    def prompt_tokens(self) -> int:
        return int(self.meta["prompt_tokens"])

    @property
    def cached_tokens(self) -> int:
        return int(self.meta["cached_tokens"])

    @property
    def live_tokens(self) -> int:
        """Slots that the prompt holds."""
        return self.prompt_tokens if self.live is None else self.live

    @property
    def ttft_s(self) -> float:
        """Seconds from sending to the first token."""
        return self.chunks[0][0] - self.sent_s

    @property
    def scheduler_s(self) -> float | None:
        """Seconds from the end of image processing to the end of the prefill; None if the server does not tell."""
        start, end = self.meta.get("api_server_dispatch_finish_ts"), self.meta.get("prefill_finished_time")
        return None if start is None or end is None else float(end) - float(start)


class EngineClient:
    """One server; an async context manager.

    Args:
        base_url: the server.
        timeout_s: seconds that may pass without a byte from it.
        references: name images by their digest that it was sent before, where it understands that.
    """

    def __init__(self, base_url: str, *, timeout_s: float = 300.0, references: bool = False) -> None:
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
        self._http = httpx.AsyncClient(base_url=base_url, timeout=timeout_s, limits=limits)
        self._images = SentImages(in_use=references)

    async def __aenter__(self) -> EngineClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._http.aclose()

    async def ask(
        self,
        prompt: Prompt,
        *,
        max_new_tokens: int,
        stream_interval: int = 1,
        share: bool = False,
        into: Stream | None = None,
        on_chunk: Callable[[], None] = lambda: None,
    ) -> Stream:
        """Send a request and read its answer to the end; exactly ``max_new_tokens`` tokens come.

        Args:
            stream_interval: tokens in a chunk; the first token always comes alone.
            share: ask a policy to keep this prompt whole, for the branches that will share it.
            into: receives what arrives, while it arrives.
            on_chunk: called after each chunk.

        Raises:
            ServeBenchError: the server refused the request or broke off.
        """
        answer = Stream() if into is None else into
        sampling: dict[str, Any] = {
            "temperature": 0,
            "max_new_tokens": max_new_tokens,
            "ignore_eos": True,
            "stream_interval": stream_interval,
        }
        if share:
            sampling["custom_params"] = {"kv_share": True}
        body = {"text": prompt.text, "sampling_params": sampling, "stream": True}
        screens = [str(path) for path in prompt.screens]

        async def post(images: Sequence[str]) -> None:
            await self._stream({**body, "image_data": list(images)}, answer, on_chunk, named=list(images) != screens)

        answer.sent_s = time.perf_counter()
        await self._images.send(screens, None, post)
        answer.done = True
        return answer

    async def _stream(self, body: dict[str, Any], answer: Stream, on_chunk: Callable[[], None], *, named: bool) -> None:
        """Read one answer; ``named``: images of the body are named by digest."""
        try:
            async with self._http.stream("POST", "/generate", json=body) as response:
                answer.sent_bytes += len(response.request.content)
                if response.is_error:
                    said = await response.aread()
                    if named:
                        raise_for_references(response.status_code, said)
                    raise ServeBenchError(f"/generate answered {response.status_code}: {said!r}")
                async for line in response.aiter_lines():
                    if line.startswith("data: {"):
                        _take(answer, line[6:], named=named)
                        on_chunk()
        except httpx.HTTPError as error:
            raise ServeBenchError(
                f"/generate broke off ({type(error).__name__}: {error}); see the server's log"
            ) from error

    async def pause(self) -> None:
        """Hold the scheduler between two steps. It goes on taking requests that were sent before."""
        await self._post("/pause_generation", {"mode": "in_place"})

    async def resume(self) -> None:
        """Let the scheduler go on."""
        await self._post("/continue_generation", {})

    async def abort_all(self) -> None:
        """End all requests."""
        await self._post("/abort_request", {"rid": "", "abort_all": True})

    async def flush(self) -> None:
        """Empty the radix tree and the image cache, as soon as nothing runs."""
        await self._post("/flush_cache?timeout=30", {})
        self._images.forget()

    async def pool(self) -> PoolState:
        """Pool and queue now."""
        return pool_state(await self._get("/metrics"))

    async def server_info(self) -> dict[str, Any]:
        """The server's arguments and state."""
        info: dict[str, Any] = json.loads(await self._get("/server_info"))
        return info

    async def policy_report(self) -> dict[str, int]:
        """What the policy counts; empty for a server without one."""
        states = (await self.server_info()).get("internal_states") or [{}]
        report: dict[str, int] = states[0].get("star_kv") or {}
        return report

    async def _post(self, path: str, body: dict[str, Any]) -> None:
        response = await self._http.post(path, json=body)
        if response.is_error:
            raise ServeBenchError(f"{path} answered {response.status_code}: {response.text[:300]}")

    async def _get(self, path: str) -> str:
        response = await self._http.get(path, follow_redirects=True)
        if response.is_error:
            raise ServeBenchError(f"{path} answered {response.status_code}: {response.text[:300]}")
        return response.text


def _take(answer: Stream, text: str, *, named: bool) -> None:
    now, event = time.perf_counter(), json.loads(text)
    if "error" in event:
        if named and not answer.chunks:
            # Stock SGLang has begun its stream when it finds that a reference is no image.
            raise_for_references(int(event["error"].get("code") or 400), text)
        raise ServeBenchError(f"/generate: {event['error']}")
    answer.text = event["text"]
    answer.meta.update(event["meta_info"])
    told = (event["meta_info"].get("star_kv") or [None])[0]
    if answer.live is None and told is not None:
        answer.live = int(told["live"])
    answer.chunks.append((now, int(event["meta_info"]["completion_tokens"])))
