"""Chat completions of an OpenAI-compatible server, with retries and a verdict on every failure.

A failure is either the request's (`RequestError`: the sample counts as failed and the run goes on) or the server's
(`ServerGoneError`: the run stops and can be resumed).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final

import httpx

from star_kv_sglang.tools.eval.conversation import Message
from star_kv_sglang.tools.eval.errors import RequestError, ServerGoneError

_BUSY: Final = frozenset({408, 429, 500, 502, 503, 504})
_MISCONFIGURED: Final = {
    401: "check --api-key",
    403: "check --api-key",
    404: "check --base-url and --model",
}


@dataclass(frozen=True, slots=True)
class Completion:
    """One answer.

    Attributes:
        text: what the model said.
        finish_reason: ``stop``, or ``length`` when it was cut off.
        prompt_tokens, completion_tokens: as the server counts them, visual tokens included.
        cached_tokens: prompt tokens found in the server's cache; None when it does not report them.
        latency_s: seconds from sending to the whole answer, of the attempt that was answered.
    """

    text: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int | None
    latency_s: float


class ChatClient:
    """One server; an async context manager.

    Args:
        base_url: the server; ``/v1`` at the end may be left out.
        api_key: sent as a bearer token when given.
        timeout_s: seconds that one attempt may take.
        retries: further attempts after a broken connection or an answer that says "busy" (408, 429, 5xx).
        backoff_s: pause before the first retry; it doubles from one to the next.
    """

    def __init__(
        self,
        base_url: str,
        *,
        api_key: str | None = None,
        timeout_s: float = 600.0,
        retries: int = 3,
        backoff_s: float = 1.0,
    ) -> None:
        self.base_url = base_url.rstrip("/").removesuffix("/v1")
        self._retries = retries
        self._backoff_s = backoff_s
        headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
        self._http = httpx.AsyncClient(
            base_url=self.base_url, timeout=timeout_s, headers=headers, limits=httpx.Limits(max_connections=None)
        )
        self._timeout_s = timeout_s

    async def __aenter__(self) -> ChatClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._http.aclose()

    async def served_model(self) -> str:
        """The name of the first model that the server lists.

        Raises:
            ServerGoneError: there is no such server, or it lists none.
        """
        answer = await self._send("GET", "/v1/models", None)
        try:
            return str(answer.json()["data"][0]["id"])
        except (ValueError, KeyError, IndexError, TypeError):
            raise ServerGoneError(f"{self.base_url}/v1/models lists no model; give --model") from None

    async def kv_settings(self) -> dict[str, Any]:
        """The ``kv_*`` options of an SGLang server, for example its policy and budget; empty of another server."""
        try:
            answer = await self._http.get("/server_info")
            body = answer.json() if answer.is_success else {}
        except (httpx.HTTPError, ValueError):
            body = {}
        options = body if isinstance(body, dict) else {}
        plain = (str, int, float, bool)
        return {name: v for name, v in sorted(options.items()) if name.startswith("kv_") and isinstance(v, plain)}

    async def complete(
        self, model: str, messages: Sequence[Message], *, max_tokens: int, cache_salt: str | None
    ) -> Completion:
        """Asks for a greedy completion.

        Args:
            cache_salt: requests of different salts share nothing in the server's cache (SGLang and vLLM know the
                field); None leaves it out.

        Raises:
            RequestError: the server refuses this request, stays busy, or answers in another form.
            ServerGoneError: the server cannot be reached, or refuses all requests.
        """
        body: dict[str, Any] = {
            "model": model,
            "messages": [*messages],
            "max_tokens": max_tokens,
            "temperature": 0,
        }
        if cache_salt is not None:
            body["cache_salt"] = cache_salt
        started = time.perf_counter()
        answer = await self._send("POST", "/v1/chat/completions", body)
        return _completion(answer, time.perf_counter() - started)

    async def _send(self, method: str, path: str, body: dict[str, Any] | None) -> httpx.Response:
        url = f"{self.base_url}{path}"
        for attempt in range(self._retries + 1):
            if attempt:
                await asyncio.sleep(self._backoff_s * 2 ** (attempt - 1))
            last = attempt == self._retries
            try:
                answer = await self._http.request(method, path, json=body)
            except httpx.TimeoutException as error:
                # A second attempt would take as long again.
                raise RequestError(f"{url} did not answer within {self._timeout_s:g} s (--timeout)") from error
            except httpx.TransportError as error:
                if last:
                    raise ServerGoneError(
                        f"{url} cannot be reached ({type(error).__name__}: {error}); start the server or mend "
                        "--base-url, then run the same command again: it goes on where it stopped"
                    ) from error
                continue
            if answer.is_success:
                return answer
            if answer.status_code in _MISCONFIGURED:
                advice = _MISCONFIGURED[answer.status_code]
                raise ServerGoneError(f"{url} answered {answer.status_code}: {answer.text[:300]}; {advice}")
            if answer.status_code not in _BUSY or last:
                raise RequestError(f"{url} answered {answer.status_code}: {answer.text[:500]}")
        raise RequestError(f"{url} was not asked: --retries {self._retries} must not be negative")


def _completion(answer: httpx.Response, latency_s: float) -> Completion:
    try:
        body = answer.json()
        choice, usage = body["choices"][0], body["usage"]
        details = usage.get("prompt_tokens_details") or {}
        return Completion(
            text=choice["message"]["content"] or "",
            finish_reason=str(choice.get("finish_reason")),
            prompt_tokens=int(usage["prompt_tokens"]),
            completion_tokens=int(usage["completion_tokens"]),
            cached_tokens=details.get("cached_tokens"),
            latency_s=latency_s,
        )
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise RequestError(f"the server answered in another form ({error!r}): {answer.text[:300]}") from error
