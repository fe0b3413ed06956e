"""References to screenshots: a digest stands for the bytes of an image that its sender has sent before.

A reference is known while SGLang's cache of processed images holds what became of these very bytes, with the same
processor and options, and only to the cache salt and extra key under which they came: it opens nothing that its sender
could not have sent. Nothing is kept for it beside the cache but who has sent what.
"""

from __future__ import annotations

import hashlib
import re
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any

from star_kv_sglang.errors import ReferenceRefusedError, UnknownImagesError

PREFIX = "sha256:"
MOST_PAIRS = 65_536
"""Pairs of a scope and an image that are remembered: eight scopes for each image that SGLang's cache holds; 30 MB."""

_REFERENCE = re.compile(r"(?:sha|md|blake)[a-z0-9_/-]{0,16}:|[0-9a-f]{64}\Z", re.IGNORECASE)
"""What can only be meant as one: no URL, path or base64 of an image looks like it."""
_RIGHT = re.compile(r"sha256:[0-9a-f]{64}", re.IGNORECASE)

MOST_REFERENCES = 8_192
"""In one request, all prompts of a batch together: SGLang's cache keeps no more images. They are looked up one by one
while all other clients wait."""

Scope = bytes
"""Cache salt and extra key of a request, as a digest: a client chooses how long they are."""


class KnownImage:
    """Stands in a request where a reference stood, and keeps what it refers to until the request is prepared.

    No dataclass: SGLang's log of requests would look into it.

    Args:
        digest: ``sha256:`` and 64 hexadecimal digits.
        artifact: The processed image of SGLang's cache.
    """

    def __init__(self, digest: str, artifact: Any) -> None:
        self.digest = digest
        self.artifact = artifact

    def __repr__(self) -> str:
        return f"KnownImage({self.digest})"

    def __reduce__(self) -> tuple[type[str], tuple[str]]:
        """A dump of requests holds the reference, not the features."""
        return str, (self.digest,)


@dataclass
class ReferenceCounters:
    """What became of references.

    Attributes:
        num_hits: Those that were known.
        num_unknown: Those whose bytes were asked for.
    """

    num_hits: int = 0
    num_unknown: int = 0


class ReferenceIndex:
    """Who has sent which image; an entry says nothing any more when the processed image is gone.

    Args:
        most_pairs: Pairs of a scope and an image that are remembered; the one that was used longest ago makes room.
    """

    def __init__(self, most_pairs: int = MOST_PAIRS) -> None:
        self._most_pairs = most_pairs
        self._sent: OrderedDict[tuple[Scope, str], weakref.ref[Any]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._sent)

    def learn(self, scope: Scope, artifact: Any) -> None:
        """Somebody in this scope has sent the bytes that this was made of."""
        pair = (scope, artifact.artifact_key)
        self._sent[pair] = weakref.ref(artifact)
        self._sent.move_to_end(pair)
        if len(self._sent) > self._most_pairs:
            self._sent.popitem(last=False)

    def find(self, scope: Scope, artifact_key: str) -> Any | None:
        """What was made of bytes that came in this scope; None where none came, or it is gone."""
        pair = (scope, artifact_key)
        held = self._sent.get(pair)
        if held is None:
            return None
        artifact = held()
        if artifact is None:
            del self._sent[pair]
        else:
            self._sent.move_to_end(pair)
        return artifact


class References:
    """Learns which images were sent, and replaces references in requests by processed images."""

    def __init__(self, index: ReferenceIndex | None = None) -> None:
        self.counters = ReferenceCounters()
        self.index = ReferenceIndex() if index is None else index
        self._scope: ContextVar[Scope | None] = ContextVar("star_kv_scope", default=None)

    def resolve(self, request: Any, processor: Any) -> None:
        """Put what is known in the place of references; the request is as it was where an error is raised.

        Args:
            request: SGLang's ``GenerateReqInput``, before or after it was normalised.
            processor: SGLang's processor of images; None where the model takes none.

        Raises:
            ReferenceRefusedError: A reference is malformed, or this server keeps no processed images.
            UnknownImagesError: Some are not known here; all of them are named.
        """
        num_references = sum(map(is_reference, _flat(request.image_data)))
        if processor is None or not num_references:
            return
        _require_kept(processor)
        if num_references > MOST_REFERENCES:
            raise ReferenceRefusedError(
                f"{num_references} references to images in one request are more than {MOST_REFERENCES}; send fewer"
            )
        unknown: dict[str, None] = {}

        def look(scope: Scope, source: Any) -> Any:
            known = self._find(scope, source, processor) if is_reference(source) else None
            if known is None and is_reference(source):
                unknown[digest_of(source)] = None
            return source if known is None else known

        images = _for_each_scope(request, look)
        for known in () if unknown else _flat(images):
            # SGLang's cache is touched only where the request goes on: it counts hits.
            if isinstance(known, KnownImage) and not _is_kept(known, processor):
                unknown[known.digest] = None
        if unknown:
            self.counters.num_unknown += len(unknown)
            raise UnknownImagesError(list(unknown))
        self.counters.num_hits += num_references
        request.image_data = images

    def put_back(self, request: Any) -> None:
        """A request is prepared, and its features are held elsewhere: what SGLang keeps of it is to hold none."""
        if any(isinstance(source, KnownImage) for source in _flat(request.image_data)):
            request.image_data = _mapped(
                request.image_data, lambda source: source.digest if isinstance(source, KnownImage) else source
            )

    @contextmanager
    def sent_by(self, request: Any) -> Iterator[None]:
        """What is learned inside is learned for this request's salt and key; one request, no batch."""
        token = self._scope.set(_scope_of(request))
        try:
            yield
        finally:
            self._scope.reset(token)

    async def prepare(self, prepare: Callable[..., Any], processor: Any, sources: Sequence[Any], **lists: Any) -> Any:
        """Processed images in the order of their sources, of which the known ones need no processing.

        Args:
            prepare: SGLang's own way from sources to processed images.
            processor: SGLang's processor of images.
            sources: Of one request; :class:`KnownImage` where a reference stood.
            lists: What SGLang is told of each source, by name, as lists or None; other values are passed on.
        """
        hashes = lists.get("content_hashes") or [None] * len(sources)
        _refuse_other_hashes(sources, hashes)
        sent = [index for index, source in enumerate(sources) if not isinstance(source, KnownImage)]
        prepared: dict[int, Any] = {}
        if sent:
            rest = {name: [one[i] for i in sent] if isinstance(one, list) else one for name, one in lists.items()}
            prepared = dict(zip(sent, await prepare(processor, [sources[i] for i in sent], **rest), strict=True))
            for index, artifact in prepared.items():
                # A hash that is taken at its word proves no bytes.
                if hashes[index] is None or not processor.trust_mm_content_hashes:
                    self.index.learn(self._scope.get() or scope_of(None, None), artifact)
        return [s.artifact if isinstance(s, KnownImage) else prepared[index] for index, s in enumerate(sources)]

    def _find(self, scope: Scope, source: Any, processor: Any) -> KnownImage | None:
        digest = digest_of(source)
        artifact = self.index.find(scope, processor._artifact_key(digest, source))
        return None if artifact is None else KnownImage(digest, artifact)


def _is_kept(known: KnownImage, processor: Any) -> bool:
    """Whether the cache still holds it: a flush forgets what running requests keep."""
    artifact = known.artifact
    kept = processor._get_cached_artifact(
        artifact.artifact_key, known.digest, processor.artifact_modality, allow_featureless=False
    )
    return kept is artifact


def is_reference(source: Any) -> bool:
    """Whether an image of a request is meant as a reference, be it a right one or not."""
    text = _text_of(source)
    return isinstance(text, str) and _REFERENCE.match(text) is not None


def digest_of(source: Any) -> str:
    """The digest that a reference names, in small letters.

    Raises:
        ReferenceRefusedError: It is malformed.
    """
    text = str(_text_of(source))
    if not text.startswith(PREFIX) or not _RIGHT.fullmatch(text):
        shown = text if len(text) <= 100 else f"{text[:100]}..."
        raise ReferenceRefusedError(
            f"reference to an image {shown!r} must be {PREFIX} and the 64 hexadecimal digits of the SHA-256 of the "
            "image file's bytes (not of their base64)"
        )
    digest = text.lower()
    _refuse_other_hash(digest, getattr(source, "content_hash", None))
    return digest


def _refuse_other_hashes(sources: Sequence[Any], hashes: Sequence[str | None]) -> None:
    for source, given in zip(sources, hashes, strict=False):
        if isinstance(source, KnownImage):
            _refuse_other_hash(source.digest, given)


def _refuse_other_hash(digest: str, given: str | None) -> None:
    if given not in (None, digest):
        raise ReferenceRefusedError(f"reference to an image {digest} came with content hash {given}; leave that out")


def refuse_uncached(sources: Any) -> None:
    """No reference may come where images are processed without the cache.

    Raises:
        ReferenceRefusedError: One does.
    """
    if any(isinstance(source, KnownImage) for source in _flat(sources)):
        raise ReferenceRefusedError(
            "references to images stand for processed images, which cannot be used in this request: it has video or "
            "audio, preprocessed images, or another number of images than of places in its prompt; send the bytes"
        )


def _require_kept(processor: Any) -> None:
    from sglang.srt.multimodal.processors.qwen_vl import QwenVLImageProcessor

    if not isinstance(processor, QwenVLImageProcessor):
        raise ReferenceRefusedError(
            f"references to images are not known with {type(processor).__name__}; send the bytes"
        )
    if not processor.mm_preprocess_cache.enabled:
        raise ReferenceRefusedError(
            "references to images need the server's image cache, and it is off (--kv-image-cache-mb 0); send the bytes"
        )


def _text_of(source: Any) -> Any:
    """What SGLang would read an image from."""
    if isinstance(source, Mapping):
        return None if "format" in source else source.get("url", source.get("image"))
    return getattr(source, "url", source)


def _flat(images: Any) -> Iterator[Any]:
    if isinstance(images, list):
        for one in images:
            yield from _flat(one)
    else:
        yield images


def _mapped(images: Any, put: Callable[[Any], Any]) -> Any:
    return [_mapped(one, put) for one in images] if isinstance(images, list) else put(images)


def scope_of(cache_salt: str | None, extra_key: str | None) -> Scope:
    """Of one prompt; SGLang takes an empty salt or key for none."""
    return hashlib.sha256(repr((cache_salt or None, extra_key or None)).encode()).digest()


def _scope_of(request: Any) -> Scope:
    return scope_of(getattr(request, "cache_salt", None), getattr(request, "extra_key", None))


def _for_each_scope(request: Any, put: Callable[[Scope, Any], Any]) -> Any:
    """A request's images with ``put(scope, image)`` in the place of each; a batch may have a scope for each prompt."""
    # A request for embeddings has neither.
    images, given = request.image_data, [getattr(request, name, None) for name in ("cache_salt", "extra_key")]
    lengths = {len(one) for one in given if isinstance(one, list)}
    if not lengths:
        return _mapped(images, partial(put, _scope_of(request)))
    num_prompts = max(lengths)
    if not isinstance(images, list):
        # SGLang would give every prompt of the batch this image.
        images = [[images] for _ in range(num_prompts)]
    if {*lengths, len(images)} != {num_prompts}:
        raise ReferenceRefusedError(
            f"image_data has {len(images)} entries, and cache_salt and extra_key have {sorted(lengths)}: give one for "
            "each prompt of the batch"
        )
    salts, keys = (one if isinstance(one, list) else [one] * num_prompts for one in given)
    scopes = map(scope_of, salts, keys)
    return [_mapped(one, partial(put, scope)) for one, scope in zip(images, scopes, strict=True)]
