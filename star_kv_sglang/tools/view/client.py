"""Asks a server for its tree, and says in one line why it does not answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import httpx

from star_kv_sglang.tools.view.errors import ViewError
from star_kv_sglang.tools.view.snapshot import check

_TIMEOUT = httpx.Timeout(30.0, connect=5.0)
"""The scheduler answers between two steps, and a step may take seconds."""


class UnreachableError(ViewError):
    """Nobody answers: the server starts, restarts, or is busy. It may come back."""


class Client:
    """A server.

    Args:
        url: Its address.
        api_key: Sent as a bearer token when given.
    """

    def __init__(self, url: str, api_key: str | None = None) -> None:
        self.url = url.rstrip("/")
        headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
        try:
            # Nothing but the server that was named is asked: no proxy, no redirect with the key.
            self._http = httpx.AsyncClient(base_url=self.url, headers=headers, timeout=_TIMEOUT, trust_env=False)
        except httpx.InvalidURL as error:
            raise ViewError(f"--live {url}: is no address of a server ({error})") from error

    async def close(self) -> None:
        """Nothing more is asked."""
        await self._http.aclose()

    async def get(self, path: str, query: Mapping[str, str] | None = None) -> httpx.Response:
        """An answer, whatever its status.

        Raises:
            UnreachableError: There is none.
            ViewError: The address is none.
        """
        try:
            return await self._http.get(path, params=dict(query or {}))
        except httpx.UnsupportedProtocol as error:
            raise ViewError(f"--live {self.url}: must begin with http:// or https://") from error
        except httpx.TimeoutException as error:
            raise UnreachableError(f"{self.url} does not answer in time: it is busy, or hangs") from error
        except httpx.TransportError as error:
            raise UnreachableError(f"{self.url} cannot be reached: {error or type(error).__name__}") from error

    async def snapshot(self) -> Mapping[str, Any]:
        """The tree now.

        Raises:
            UnreachableError: Nobody answers.
            ViewError: The server does not show its tree to us, or in another version.
        """
        answer = await self.get("/star_kv/tree")
        if answer.status_code == 404:
            raise ViewError(await self._why_not_found())
        if answer.status_code in (401, 403):
            raise ViewError(
                f"{self.url} asks for its key: give --api-key (the admin key, where the server has one), or set "
                "STAR_KV_API_KEY"
            )
        if answer.status_code >= 500:
            raise UnreachableError(f"{self.url} answers {answer.status_code}: {message_of(answer)}")
        return check(_json(answer), self.url)

    async def _why_not_found(self) -> str:
        answer = await self.get("/server_info")
        info = _json(answer) if answer.status_code == 200 else None
        if not isinstance(info, Mapping):
            return f"{self.url} is no server of SGLang: it knows neither /star_kv/tree nor /server_info"
        if "kv_policy" not in info:
            return f"{self.url} is SGLang without star-kv: install star-kv-sglang there, and start `star-kv serve`"
        if info["kv_policy"] == "full":
            return f"{self.url} runs without a policy: start it with --kv-policy star --kv-introspection tree"
        if "kv_introspection" not in info:
            return f"{self.url} runs an older star-kv, which cannot show its tree: update it there"
        return f"{self.url} does not show its tree: start it with --kv-introspection tree, or content"


def _json(answer: httpx.Response) -> Any:
    try:
        return answer.json()
    except ValueError:
        return None


def message_of(answer: httpx.Response) -> str:
    """What an answer says is wrong."""
    told = _json(answer)
    error = told.get("error") if isinstance(told, Mapping) else None
    return str(error["message"]) if isinstance(error, Mapping) and "message" in error else answer.reason_phrase
