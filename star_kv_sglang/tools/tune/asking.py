"""A server's answers with what it thought of each token: its log-probability, and the likeliest ones beside it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final

import httpx

from star_kv_sglang.tools.tune.errors import ReplayError

TOP: Final = 10
"""Likeliest tokens that are looked at beside an answer's own."""

_RETRIES: Final = 2
_PAUSE_S: Final = 1.0


@dataclass(frozen=True)
class Token:
    """A place of an answer.

    Attributes:
        id: the token that stands there.
        logprob: its log-probability, in nats.
        top: the likeliest tokens' log-probabilities by id.
    """

    id: int
    logprob: float
    top: Mapping[int, float]


@dataclass(frozen=True)
class Heard:
    """An answer.

    Attributes:
        text: its words.
        tokens: its tokens.
        asked: log-probabilities of the tokens that were asked about, at the answer's first place, by id.
        prompt: tokens of the prompt, visual ones included.
        cached: of these, found in the cache.
        live: slots that the prompt's row shows; ``prompt`` where nothing was pruned.
        cut_off: the answer reached the token limit.
    """

    text: str
    tokens: tuple[Token, ...]
    asked: Mapping[int, float]
    prompt: int
    cached: int
    live: int
    cut_off: bool

    @property
    def ids(self) -> tuple[int, ...]:
        """The tokens' ids."""
        return tuple(token.id for token in self.tokens)


class RefusedError(ReplayError):
    """The server refuses one request."""


@dataclass(frozen=True)
class Prompt:
    """What is sent.

    Attributes:
        ids: with one image mark for each screenshot.
        images: data URLs.
        name: of the request; its prunes are traced under it.
        salt: requests of another salt share nothing in the cache.
        budget: share of the private visual tokens that stays.
        traced: the server writes down what it prunes.
    """

    ids: tuple[int, ...]
    images: tuple[str, ...]
    name: str
    salt: str
    budget: float
    traced: bool = False


class Asker:
    """A server's ``/generate``; an asynchronous context manager.

    Args:
        base_url: the server.
        timeout_s: seconds that a request may take.
    """

    def __init__(self, base_url: str, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        limits = httpx.Limits(max_connections=None)
        self._http = httpx.AsyncClient(base_url=base_url, timeout=timeout_s, limits=limits)

    async def __aenter__(self) -> Asker:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._http.aclose()

    async def hear(self, prompt: Prompt, max_tokens: int, about: Sequence[int] = ()) -> Heard:
        """The greedy answer.

        Args:
            prompt: what is asked.
            max_tokens: of the answer.
            about: ids whose log-probabilities at the answer's first place are wanted.

        Raises:
            RefusedError: the server refuses the request.
            ReplayError: the server cannot be reached, or answers in another form.
        """
        body = _body(prompt, max_tokens) | {"token_ids_logprob": [*about] or None, "logprob_start_len": -1}
        raw = await self._post(body)
        try:
            meta = raw["meta_info"]
            tokens = _tokens(meta["output_token_logprobs"], meta["output_top_logprobs"])
            first = (meta.get("output_token_ids_logprobs") or [None])[0] or []
            (use, *_) = meta.get("star_kv") or [None]
            return Heard(
                text=raw["text"].strip(),
                tokens=tokens,
                asked={int(token): float(logprob) for logprob, token, *_ in first},
                prompt=int(meta["prompt_tokens"]),
                cached=int(meta["cached_tokens"]),
                live=int(meta["prompt_tokens"] if use is None else use["live"]),
                cut_off=(meta.get("finish_reason") or {}).get("type") == "length",
            )
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise ReplayError(f"the server answered in another form ({error!r}): {str(raw)[:300]}") from error

    async def hear_said(self, prompt: Prompt, answer: Sequence[int], prompt_tokens: int) -> tuple[Token, ...] | None:
        """What a server thinks of an answer behind a prompt that it has just been asked; nothing is pruned by it.

        Args:
            prompt: as it was asked.
            answer: ids.
            prompt_tokens: of the prompt, visual ones included.

        Returns:
            The answer's tokens but the first; None where the server reads the answer as other tokens.

        Raises:
            RefusedError, ReplayError: as `hear`.
        """
        body = _body(prompt, 1)
        body["input_ids"] = [*prompt.ids, *answer]
        body["rid"] = f"{prompt.name}s"
        body["logprob_start_len"] = prompt_tokens
        body["sampling_params"]["custom_params"] = {"kv_budget": 1.0, "kv_trace": False}
        raw = await self._post(body)
        try:
            meta = raw["meta_info"]
            said, top = meta["input_token_logprobs"], meta["input_top_logprobs"]
            if [int(entry[1]) for entry in said] != [*answer]:
                return None
            return _tokens(said[1:], top[1:])
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise ReplayError(f"the server answered in another form ({error!r}): {str(raw)[:300]}") from error

    async def flush(self) -> None:
        """Empty the cache as soon as nothing runs.

        Raises:
            ReplayError: the server does not.
        """
        answer = await self._send("/flush_cache", None)
        if not answer.is_success:
            raise ReplayError(f"the server does not empty its cache: {answer.status_code} {answer.text[:200]}")

    async def _post(self, body: dict[str, Any]) -> dict[str, Any]:
        answer = await self._send("/generate", body)
        if not answer.is_success:
            raise RefusedError(f"the server answered {answer.status_code}: {answer.text[:500]}")
        try:
            raw = answer.json()
        except ValueError as error:
            raise ReplayError(f"the server answered no JSON but {answer.text[:200]!r}") from error
        if not isinstance(raw, dict):
            raise ReplayError(f"the server answered no JSON object but {answer.text[:200]!r}")
        return raw

    async def _send(self, path: str, body: dict[str, Any] | None) -> httpx.Response:
        for attempt in range(_RETRIES + 1):
            try:
                return await self._http.post(path, json=body, params=None if body else {"timeout": self._timeout_s})
            except httpx.TimeoutException as error:
                raise ReplayError(
                    f"{path} did not answer within {self._timeout_s:g} s; give more with --timeout, and look at the "
                    "server's log"
                ) from error
            except httpx.TransportError as error:
                if attempt == _RETRIES:
                    raise ReplayError(
                        f"the server is gone ({type(error).__name__}: {error}); its log says why. The same command "
                        "goes on where it stopped"
                    ) from error
                await asyncio.sleep(_PAUSE_S)
        raise AssertionError("the loop returns or raises")


def _body(prompt: Prompt, max_tokens: int) -> dict[str, Any]:
    custom = {"kv_budget": prompt.budget, "kv_trace": prompt.traced}
    return {
        "input_ids": list(prompt.ids),
        "image_data": list(prompt.images) or None,
        "sampling_params": {"temperature": 0, "max_new_tokens": max_tokens, "custom_params": custom},
        "return_logprob": True,
        "top_logprobs_num": TOP,
        "rid": prompt.name,
        "cache_salt": prompt.salt,
    }


def _tokens(said: Sequence[Sequence[Any]], top: Sequence[Sequence[Sequence[Any]]]) -> tuple[Token, ...]:
    return tuple(
        Token(int(token), float(logprob), {int(other): float(p) for p, other, *_ in beside or ()})
        for (logprob, token, *_), beside in zip(said, top, strict=True)
    )
