"""A client's side of references to images: bytes first, digests later, bytes again where a server asks for them.

An agent sends its whole history with every turn; a server with a KV policy keeps what became of each screenshot, and
takes ``sha256:...`` for one that it was sent before. Other servers refuse that, and get bytes from then on.
"""

from __future__ import annotations

import base64
import hashlib
import json
import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import lru_cache
from typing import Any, Final, TypeVar

logger = logging.getLogger(__name__)

UNKNOWN_STATUS: Final = 422
NOT_UNDERSTOOD: Final = frozenset({400, UNKNOWN_STATUS, 500})
"""How servers that know no references answer one: as a file that is not there, or an image that cannot be decoded."""

_MOST_DIGESTS: Final = 256
"""Data URLs whose digest is kept, and they with it: of a megabyte each."""

_MOST_FORGOTTEN: Final = 64
"""Requests in a row for which the server asked for bytes that it had been sent: as many branches may find out together
that it was emptied, and more mean that references cost more than they spare."""

_Answer = TypeVar("_Answer")


class UnknownImagesAnswer(Exception):
    """A server asks for the bytes of some images.

    Args:
        digests: As it names them.
    """

    def __init__(self, digests: Iterable[str]) -> None:
        super().__init__()
        self.digests = frozenset(digests)


class NotUnderstoodAnswer(Exception):
    """A server refuses a request that has references; it may know none, or the request is wrong besides."""


def raise_for_references(status: int, text: str | bytes) -> None:
    """Raise what a server's answer to a request with references means; nothing if it is of another kind.

    Args:
        status: Of HTTP.
        text: Its body.

    Raises:
        UnknownImagesAnswer: The server asks for bytes.
        NotUnderstoodAnswer: The server may know no references.
    """
    if status not in NOT_UNDERSTOOD:
        return
    try:
        body = json.loads(text)
    except ValueError:
        body = None
    digests = body.get("unknown_images") if isinstance(body, dict) else None
    if status == UNKNOWN_STATUS and isinstance(digests, list):
        raise UnknownImagesAnswer(str(digest) for digest in digests)
    raise NotUnderstoodAnswer


class SentImages:
    """What one server has been sent.

    Attributes:
        in_use: Whether the server is asked by reference at all; it is not again where it has once not understood one.
    """

    def __init__(self, *, in_use: bool = True) -> None:
        self.in_use = in_use
        self._sent: set[tuple[str | None, str]] = set()
        self._understood = False
        self._num_forgotten = 0

    def forget(self) -> None:
        """The server has been emptied."""
        self._sent.clear()

    async def send(
        self, images: Sequence[str], salt: str | None, post: Callable[[Sequence[str]], Awaitable[_Answer]]
    ) -> _Answer:
        """Send a request with as few bytes as the server lets it have.

        Args:
            images: Data URLs; others travel as they are.
            salt: The request's cache salt: a server knows an image only under the salt under which it came.
            post: Sends the request with these strings in the place of its images. Where they differ from ``images``,
                it passes what it is answered to :func:`raise_for_references`.

        Raises:
            Exception: What ``post`` raises of a request that has no references.
        """
        named, answers, was_forgotten = self._named(images, salt), list[_Answer](), False
        while not answers and named != list(images):
            try:
                answers.append(await post(named))
                self._understood = True
            except UnknownImagesAnswer as unknown:
                self._understood = True
                self._sent -= {(salt, digest) for digest in unknown.digests}
                # What was forgotten once goes as bytes, and after a second time all does.
                rest = [image if name in unknown.digests else name for name, image in zip(named, images, strict=True)]
                named = list(images) if was_forgotten else rest
                was_forgotten = True
            except NotUnderstoodAnswer:
                answers.append(await post(images))
                # The same request is fine with bytes. A server that has taken references before had another reason.
                if not self._understood:
                    self._give_up("knows no references to images")
                return answers[0]
        answer = answers[0] if answers else await post(images)
        self._learn(images, salt)
        self._num_forgotten = self._num_forgotten + 1 if was_forgotten else 0
        if self._num_forgotten >= _MOST_FORGOTTEN:
            self._give_up("forgets images between turns (its image cache is small, or several servers answer here)")
        return answer

    def _give_up(self, why: str) -> None:
        # Others may have found out meanwhile.
        if self.in_use:
            logger.warning("the server %s: screenshots go as bytes from now on", why)
        self.in_use = False

    def _named(self, images: Sequence[str], salt: str | None) -> list[str]:
        if not self.in_use or not self._sent:
            return list(images)
        return [
            digest if (digest := _digest(image)) is not None and (salt, digest) in self._sent else image
            for image in images
        ]

    def _learn(self, images: Sequence[str], salt: str | None) -> None:
        if self.in_use:
            self._sent |= {(salt, digest) for image in images if (digest := _digest(image)) is not None}


def image_urls(messages: Sequence[dict[str, Any]]) -> list[str]:
    """URLs of the images of OpenAI chat messages, in order."""
    return [part["image_url"]["url"] for part in _parts(messages) if part.get("type") == "image_url"]


def with_image_urls(messages: Sequence[dict[str, Any]], urls: Iterable[str]) -> list[dict[str, Any]]:
    """The messages with other URLs for their images, one for each in order."""
    rest = iter(urls)

    def replaced(part: dict[str, Any]) -> dict[str, Any]:
        if part.get("type") != "image_url":
            return part
        return {**part, "image_url": {**part["image_url"], "url": next(rest)}}

    return [
        {**message, "content": [replaced(part) for part in message["content"]]}
        if isinstance(message.get("content"), list)
        else message
        for message in messages
    ]


def _parts(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [part for one in messages if isinstance(one.get("content"), list) for part in one["content"]]


def _digest(url: str) -> str | None:
    return _digest_of_data(url) if url.startswith("data:") else None


# A history repeats its screenshots at every turn.
@lru_cache(maxsize=_MOST_DIGESTS)
def _digest_of_data(url: str) -> str | None:
    """None for what is no base64: the server says what is wrong with it."""
    kind, comma, data = url.partition(",")
    if not comma or not kind.endswith(";base64"):
        return None
    try:
        return "sha256:" + hashlib.sha256(base64.b64decode(data, validate=True)).hexdigest()
    except ValueError:
        return None
