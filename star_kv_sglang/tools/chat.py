"""Chat completions of an OpenAI-compatible server, with retries and a verdict on every failure.

A failure is either the request's (`RequestError`) or the server's (`ServerGoneError`): an evaluation counts the one as
a failed sample and stops at the other.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final

import httpx

from star_kv_sglang.errors import StarKVError
from star_kv_sglang.tools.image_references import (
    SentImages,
    image_urls,
    raise_for_references,
    with_image_urls,
)

Message = dict[str, Any]
"""An OpenAI chat message: ``role`` and ``content``."""

HITS_UNKNOWN: Final = "not reported (start with --enable-cache-report)"
"""Stands where cache hits would, of a server that does not report them."""

_AWAY: Final = frozenset({502, 503, 504})
"""What a proxy says of a server that it does not reach, and a server of itself while it starts or ends."""
_BUSY: Final = frozenset({408, 429, 500, *_AWAY})
_MISCONFIGURED: Final = {
    401: "check --api-key",
    403: "check --api-key",
    404: "check --base-url and --model",
}


class ChatError(StarKVError, RuntimeError):
    """A server did not answer as it should; the message says which request, why, and what to do."""


class RequestError(ChatError):
    """The server refused or broke one request."""


class UnavailableError(RequestError):
    """A proxy does not reach the server, or the server is busy to the last attempt (502, 503, 504); it may pass."""


class ServerGoneError(ChatError):
    """The server cannot be reached, or refuses all requests."""


@dataclass(frozen=True, slots=True)
class Completion:
    """One answer.

    Attributes:
        request_id: the server's id of the request.
        text: what the model said.
        finish_reason: ``stop``, or ``length`` when it was cut off.
        prompt_tokens, completion_tokens: as the server counts them, visual tokens included.
        cached_tokens: prompt tokens found in the server's cache; None when it does not report them
            (SGLang: ``--enable-cache-report``).
        latency_s: seconds from sending to the whole answer, of the attempt that was answered.
        retrying_s: seconds before that of attempts that came to nothing, and of the pauses between them.
    """

    request_id: str
    text: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int | None
    latency_s: float
    retrying_s: float = 0.0


class ChatClient:
    """One server; an async context manager.

    Args:
        base_url: the server; ``/v1`` at the end may be left out.
        api_key: sent as a bearer token when given.
        timeout_s: seconds that one attempt may take.
        retries: further attempts after a broken connection or an answer that says "busy" (408, 429, 5xx).
        backoff_s: pause before the first retry; it doubles from one to the next.
        when_gone: what a user does when the server cannot be reached.
        references: name images by their digest that the server was sent before, where it understands that.
    """

    def __init__(
        self,
        base_url: str,
        *,
        api_key: str | None = None,
        timeout_s: float = 600.0,
        retries: int = 0,
        backoff_s: float = 1.0,
        when_gone: str = "start the server, or mend --base-url",
        references: bool = True,
    ) -> None:
        self.base_url = base_url.rstrip("/").removesuffix("/v1")
        self._timeout_s = timeout_s
        self._retries = retries
        self._backoff_s = backoff_s
        self._when_gone = when_gone
        self._http = httpx.AsyncClient(
            base_url=self.base_url,
            timeout=timeout_s,
            headers={} if api_key is None else {"Authorization": f"Bearer {api_key}"},
            limits=httpx.Limits(max_connections=None),
            follow_redirects=True,
        )
        self._model: str | None = None
        self._images = SentImages(in_use=references)
        # SGLang says 0 where it does not report.
        self._reports_cache = True

    async def __aenter__(self) -> ChatClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._http.aclose()

    async def model(self) -> str:
        """The name of the first model that the server lists.

        Raises:
            ChatError: there is no such server, or it lists none.
        """
        if self._model is None:
            answer, _ = await self._send("GET", "/v1/models")
            try:
                self._model = str(answer.json()["data"][0]["id"])
            except (ValueError, KeyError, IndexError, TypeError):
                raise ServerGoneError(
                    f"{self.base_url}/v1/models lists no model; give --model, or check that --base-url is an "
                    "OpenAI-compatible server"
                ) from None
        return self._model

    async def server_info(self) -> dict[str, Any] | None:
        """SGLang's ``/server_info``; None when the server is no SGLang. Notes whether answers report cache hits."""
        answer, _ = await self._send("GET", "/server_info", may_be_missing=True)
        if answer.status_code == httpx.codes.NOT_FOUND:
            return None
        info = _json(answer)
        self._reports_cache = bool(info.get("enable_cache_report", True))
        return info

    async def kv_settings(self) -> dict[str, Any]:
        """The ``kv_*`` options of an SGLang server, for example its policy and budget; empty of another server."""
        try:
            options = await self.server_info() or {}
        except ChatError:
            options = {}
        return kv_settings_of(options)

    async def metrics(self) -> str | None:
        """The Prometheus page; None when the server has none (SGLang: ``--enable-metrics``)."""
        answer, _ = await self._send("GET", "/metrics", may_be_missing=True)
        return None if answer.status_code == httpx.codes.NOT_FOUND else answer.text

    async def chat(
        self,
        messages: Sequence[Message],
        *,
        max_tokens: int,
        model: str | None = None,
        custom_params: dict[str, Any] | None = None,
        cache_salt: str | None = None,
        temperature: float = 0.0,
        seed: int | None = None,
    ) -> Completion:
        """Ask for a completion, a greedy one by default.

        Args:
            model: by default the first that the server lists.
            temperature: of the sampling.
            seed: of the sampling, for servers that take one; sent only when given.
            custom_params: SGLang's per-request parameters; sent only when given.
            cache_salt: requests of different salts share nothing in the server's cache (SGLang and vLLM know the
                field); sent only when given.

        Raises:
            RequestError: the server refuses this request, stays busy, or answers in another form;
                `UnavailableError` where it may be away.
            ServerGoneError: the server cannot be reached, or refuses all requests.
        """
        body: dict[str, Any] = {
            "model": await self.model() if model is None else model,
            "messages": [*messages],
            "max_tokens": max_tokens,
            "temperature": temperature,
        }
        optional = {"custom_params": custom_params, "cache_salt": cache_salt, "seed": seed}
        body.update({name: value for name, value in optional.items() if value is not None})
        urls = image_urls(messages)
        first_sent: float | None = None

        async def post(images: Sequence[str]) -> Completion:
            nonlocal first_sent
            named = list(images) != urls
            given = {**body, "messages": with_image_urls(messages, images)} if named else body
            first_sent = time.perf_counter() if first_sent is None else first_sent
            answer, sent = await self._send("POST", "/v1/chat/completions", given, named=named)
            return self._completion(_json(answer), time.perf_counter() - sent, sent - first_sent)

        return await self._images.send(urls, cache_salt, post)

    async def _send(
        self,
        method: str,
        path: str,
        body: dict[str, Any] | None = None,
        *,
        may_be_missing: bool = False,
        named: bool = False,
    ) -> tuple[httpx.Response, float]:
        """Send a request, again where the server is busy; ``named``: images of the body are named by digest.

        Returns:
            The answer, and when the attempt that it answers was sent, on the clock of `time.perf_counter`.
        """
        url = f"{self.base_url}{path}"
        for attempt in range(self._retries + 1):
            if attempt:
                await asyncio.sleep(self._backoff_s * 2 ** (attempt - 1))
            last = attempt == self._retries
            sent = time.perf_counter()
            try:
                answer = await self._http.request(method, path, json=body)
            except httpx.TimeoutException as error:
                # A second attempt would take as long again.
                raise RequestError(
                    f"{url} did not answer within {self._timeout_s:g} s (--timeout); look at the server's log"
                ) from error
            except httpx.TransportError as error:
                if last:
                    what = "cannot be reached" if isinstance(error, httpx.ConnectError) else "broke off the connection"
                    raise ServerGoneError(
                        f"{url} {what} ({type(error).__name__}: {error}); {self._when_gone}"
                    ) from error
                continue
            if answer.is_success or (may_be_missing and answer.status_code == httpx.codes.NOT_FOUND):
                return answer, sent
            if named:
                raise_for_references(answer.status_code, answer.content)
            if answer.status_code in _MISCONFIGURED:
                advice = _MISCONFIGURED[answer.status_code]
                raise ServerGoneError(f"{url} answered {answer.status_code}: {answer.text[:300]}; {advice}")
            if answer.status_code not in _BUSY or last:
                kind = UnavailableError if answer.status_code in _AWAY else RequestError
                raise kind(f"{url} answered {answer.status_code}: {answer.text[:500]}")
        raise RequestError(f"{url} was not asked: --retries {self._retries} must not be negative")

    def _completion(self, body: dict[str, Any], latency_s: float, retrying_s: float) -> Completion:
        try:
            choice, usage = body["choices"][0], body["usage"]
            details = usage.get("prompt_tokens_details") or {}
            return Completion(
                request_id=str(body["id"]),
                text=choice["message"]["content"] or "",
                finish_reason=str(choice.get("finish_reason")),
                prompt_tokens=int(usage["prompt_tokens"]),
                completion_tokens=int(usage["completion_tokens"]),
                cached_tokens=details.get("cached_tokens") if self._reports_cache else None,
                latency_s=latency_s,
                retrying_s=retrying_s,
            )
        except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
            raise RequestError(f"the server answered in another form ({error!r}): {str(body)[:300]}") from error


def kv_settings_of(server_info: dict[str, Any] | None) -> dict[str, Any]:
    """The ``kv_*`` options of a ``/server_info``; empty of none."""
    plain = (str, int, float, bool)
    options = sorted((server_info or {}).items())
    return {name: value for name, value in options if name.startswith("kv_") and isinstance(value, plain)}


def _json(answer: httpx.Response) -> dict[str, Any]:
    try:
        body = answer.json()
    except ValueError as error:
        raise RequestError(f"{answer.url} answered no JSON but {answer.text[:200]!r}") from error
    if not isinstance(body, dict):
        raise RequestError(f"{answer.url} answered no JSON object but {answer.text[:200]!r}")
    return body
