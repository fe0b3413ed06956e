"""Chat completions against an OpenAI-compatible server."""

from __future__ import annotations

import time
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import httpx

from star_kv_sglang.tools.rollout.errors import RolloutError

Message = dict[str, Any]
"""An OpenAI chat message: ``role`` and ``content``."""


@dataclass(frozen=True, slots=True)
class Completion:
    """One answered request.

    Attributes:
        request_id: the server's id of the request.
        text: the assistant's words.
        prompt_tokens, completion_tokens: as the server counts them, visual tokens included.
        cached_tokens: prompt tokens found in the radix tree; None when the server does not report it
            (SGLang: ``--enable-cache-report``).
        latency_s: seconds from sending to the whole answer.
    """

    request_id: str
    text: str
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int | None
    latency_s: float


class ChatClient:
    """One server, one model; an async context manager.

    Args:
        base_url: the server, without ``/v1``.
        timeout_s: seconds a request may take.
    """

    def __init__(self, base_url: str, *, timeout_s: float = 120.0) -> None:
        self.base_url = base_url.rstrip("/").removesuffix("/v1")
        self._timeout_s = timeout_s
        self._http = httpx.AsyncClient(
            base_url=self.base_url, timeout=timeout_s, limits=httpx.Limits(max_connections=None)
        )
        self._model: str | None = None

    async def __aenter__(self) -> ChatClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._http.aclose()

    async def model(self) -> str:
        """The name of the model that is served."""
        if self._model is None:
            models = _json(await self._send("GET", "/v1/models"), "/v1/models").get("data")
            if not isinstance(models, list) or not models or "id" not in models[0]:
                raise RolloutError(f"{self.base_url}/v1/models lists no model; is this an OpenAI-compatible server?")
            self._model = str(models[0]["id"])
        return self._model

    async def server_info(self) -> dict[str, Any] | None:
        """SGLang's ``/server_info``; None when the server is no SGLang."""
        answer = await self._send("GET", "/server_info", allow_missing=True)
        return None if answer.status_code == 404 else _json(answer, "/server_info")

    async def metrics(self) -> str | None:
        """The Prometheus page; None when the server has none (SGLang: ``--enable-metrics``)."""
        answer = await self._send("GET", "/metrics", allow_missing=True, follow_redirects=True)
        return None if answer.status_code == 404 else answer.text

    async def chat(
        self, messages: list[Message], *, max_tokens: int, custom_params: dict[str, Any] | None = None
    ) -> Completion:
        """Asks for a greedy completion.

        Args:
            custom_params: SGLang's per-request parameters; sent only when given.

        Raises:
            RolloutError: no answer in time, a broken connection, an error status, or an answer of another form.
        """
        body: dict[str, Any] = {
            "model": await self.model(),
            "messages": messages,
            "max_tokens": max_tokens,
            "temperature": 0,
        }
        if custom_params is not None:
            body["custom_params"] = custom_params
        started = time.perf_counter()
        answer = await self._send("POST", "/v1/chat/completions", json=body)
        latency_s = time.perf_counter() - started
        return _completion(_json(answer, "/v1/chat/completions"), latency_s)

    async def _send(
        self, method: str, path: str, *, allow_missing: bool = False, follow_redirects: bool = False, json: Any = None
    ) -> httpx.Response:
        url = f"{self.base_url}{path}"
        try:
            answer = await self._http.request(method, path, json=json, follow_redirects=follow_redirects)
        except httpx.TimeoutException as error:
            raise RolloutError(
                f"{url} did not answer within {self._timeout_s:g} s; look at the server's log, or allow more time "
                "with --timeout"
            ) from error
        except httpx.ConnectError as error:
            raise RolloutError(f"{url} cannot be reached ({error}); start the server, or mend --base-url") from error
        except httpx.HTTPError as error:
            raise RolloutError(
                f"{url} broke off the connection ({type(error).__name__}: {error}); look at the server's log"
            ) from error
        if answer.is_error and not (allow_missing and answer.status_code == 404):
            raise RolloutError(f"{url} answered {answer.status_code}: {answer.text[:500]}")
        return answer


def _json(answer: httpx.Response, path: str) -> dict[str, Any]:
    try:
        body = answer.json()
    except ValueError as error:
        raise RolloutError(f"{path} answered no JSON but {answer.text[:200]!r}") from error
    if not isinstance(body, dict):
        raise RolloutError(f"{path} answered no JSON object but {answer.text[:200]!r}")
    return body


def _completion(body: dict[str, Any], latency_s: float) -> Completion:
    try:
        usage = body["usage"]
        details = usage.get("prompt_tokens_details") or {}
        return Completion(
            request_id=str(body["id"]),
            text=str(body["choices"][0]["message"]["content"]).strip(),
            prompt_tokens=int(usage["prompt_tokens"]),
            completion_tokens=int(usage["completion_tokens"]),
            cached_tokens=details.get("cached_tokens"),
            latency_s=latency_s,
        )
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise RolloutError(f"/v1/chat/completions answered in another form ({error!r}): {str(body)[:300]}") from error
