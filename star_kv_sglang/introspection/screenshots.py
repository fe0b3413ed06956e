"""Screenshots as clients sent them, for who looks at the tree of a server that shows them."""

from __future__ import annotations

import base64
import binascii
from collections import OrderedDict
from collections.abc import Iterable
from typing import Any, Final

MOST_BYTES: Final = 256 * 2**20
"""That are held; the ones that no request has had for longest go first."""
KINDS: Final = {
    b"\x89PNG\r\n\x1a\n": "image/png",
    b"\xff\xd8\xff": "image/jpeg",
    b"GIF8": "image/gif",
    b"BM": "image/bmp",
}
"""What a browser is told a picture is, by how it begins: never what its sender says."""


def kind_of(picture: bytes) -> str | None:
    """Media type of a picture; None for what is none that a browser draws."""
    if picture[:4] == b"RIFF" and picture[8:12] == b"WEBP":
        return "image/webp"
    return next((kind for head, kind in KINDS.items() if picture.startswith(head)), None)


class Screenshots:
    """The newest screenshots, by SGLang's hash of their pixels. Nothing is copied or decoded before somebody looks."""

    def __init__(self, most_bytes: int = MOST_BYTES) -> None:
        self._most_bytes = most_bytes
        self._sent: OrderedDict[str, str | bytes] = OrderedDict()
        self._num_bytes = 0

    def note(self, sources: Iterable[Any], hashes: Iterable[str]) -> None:
        """A request came with these images; what is neither bytes nor base64 of them, as a URL is not, is left out.

        An image that is held is in use again however it came, by its digest for instance.
        """
        for source, name in zip(sources, hashes, strict=False):
            data = getattr(source, "url", source)
            if not isinstance(data, str | bytes) or (isinstance(data, str) and not _holds_bytes(data)):
                if name in self._sent:
                    self._sent.move_to_end(name)
                continue
            self._num_bytes += len(data) - len(self._sent.pop(name, b""))
            self._sent[name] = data
        while self._num_bytes > self._most_bytes:
            _, dropped = self._sent.popitem(last=False)
            self._num_bytes -= len(dropped)

    def get(self, name: str) -> bytes | None:
        """Bytes of a screenshot; None where they are not held, or no picture."""
        data = self._sent.get(name)
        if isinstance(data, str):
            try:
                data = base64.b64decode(data.rpartition(",")[2], validate=True)
            except (binascii.Error, ValueError):
                return None
        return data if data is not None and kind_of(data) else None


def _holds_bytes(source: str) -> bool:
    # SGLang takes bare base64 too: no URL or path is so long and so plain.
    return source.startswith("data:image/") or ("://" not in source and len(source) > 4_096 and "." not in source[:64])


def flat(images: Any) -> list[Any]:
    """Images of a request, in order."""
    if images is None:
        return []
    if not isinstance(images, list | tuple):
        return [images]
    return [image for entry in images for image in flat(entry)]
