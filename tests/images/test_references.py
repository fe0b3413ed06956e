"""References to images: what is one, who may use it, how long, and that what is wrong with one is told."""

from __future__ import annotations

import asyncio
import gc
import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
from sglang.srt.managers.schedule_batch import Modality
from sglang.srt.multimodal.cache import MultimodalPreprocessCache
from sglang.srt.multimodal.processors.qwen_vl import QwenVLImageProcessor
from sglang.srt.utils import ImageData

from star_kv_sglang.errors import ReferenceRefusedError, UnknownImagesError
from star_kv_sglang.images.references import (
    MOST_REFERENCES,
    KnownImage,
    ReferenceIndex,
    References,
    digest_of,
    is_reference,
    refuse_uncached,
)


@dataclass(frozen=True)
class Artifact:
    """A processed image, as far as references and SGLang's cache look at it."""

    content_digest: str
    artifact_key: str
    feature_hash: int = 1
    has_feature: bool = True

    def cache_value(self) -> Artifact:
        return self

    def cache_size_items(self) -> Sequence[Any]:
        return (b"x" * 100,)


def digest(number: int) -> str:
    """The digest of an image."""
    return f"sha256:{number:064x}"


def make_processor(cache_bytes: int = 1000, *, trusts: bool = False) -> Any:
    """SGLang's processor with its cache, and without a model."""
    processor: Any = object.__new__(QwenVLImageProcessor)
    processor.mm_preprocess_cache = MultimodalPreprocessCache(cache_bytes)
    processor.processor_fingerprint = digest(0)
    processor.trust_mm_content_hashes = trusts
    return processor


def request(images: Any, cache_salt: Any = None, extra_key: Any = None) -> Any:
    return SimpleNamespace(image_data=images, cache_salt=cache_salt, extra_key=extra_key)


def send(references: References, processor: Any, images: Any, salt: str | None = None, **lists: Any) -> list[Any]:
    """Prepare one request's images, as a processor would: an image that is a number is sent as bytes."""

    async def prepare(processor: Any, sources: Sequence[Any], **lists: Any) -> list[Artifact]:
        made = []
        for source in sources:
            text = digest(source.url if isinstance(source, ImageData) else source)
            key = processor._artifact_key(text, source)
            kept = processor.mm_preprocess_cache.get(key)
            made.append(kept or Artifact(text, key))
            processor.mm_preprocess_cache.put(key, made[-1])
        return made

    asked = request(images, salt)
    references.resolve(asked, processor)
    with references.sent_by(asked):
        prepared: list[Any] = asyncio.run(references.prepare(prepare, processor, asked.image_data, **lists))
    return prepared


@pytest.mark.parametrize(
    "text",
    [
        "sha256:",
        digest(1)[:-1],
        digest(1) + "0",
        digest(1)[:-1] + "g",
        digest(1)[:-1] + "\n",
        "sha512:" + "0" * 128,
        "SHA256:" + "0" * 64,
        "sha-256:" + "0" * 64,
        "md5:" + "0" * 32,
        "blake3:" + "0" * 64,
        "0" * 64,
        " sha256:"[1:] + " " + "0" * 63,
    ],
)
def test_a_malformed_reference_is_told_what_is_right(text: str) -> None:
    for source in (text, ImageData(text), {"url": text}):
        assert is_reference(source)
        with pytest.raises(ReferenceRefusedError, match="must be sha256: and the 64 hexadecimal digits"):
            References().resolve(request([source]), make_processor())


@pytest.mark.parametrize(
    "source",
    [
        "https://a.example/sha256:0",
        "file:///sha256/x.png", "/md5/x.png", "data:image/png;base64,iVBORw0KGgo=", "iVBOR",
        "shadow.png", "sha256", b"sha256:", None, 3, {"format": "processor_output", "url": digest(1)},
        ImageData("data:image/png;base64,sha256"),
    ],
)  # fmt: skip
def test_other_images_are_no_references(source: Any) -> None:
    assert not is_reference(source)
    asked = request([source])
    References().resolve(asked, make_processor(0))
    assert asked.image_data == [source]


def test_digits_may_be_capitals() -> None:
    text = "sha256:" + "AB" * 32
    assert digest_of(text) == text.lower()


def test_what_was_sent_is_known_and_nothing_else() -> None:
    references, processor = References(), make_processor()
    first, second = send(references, processor, [1, 2])
    assert send(references, processor, [digest(2), 3, digest(1), digest(2)])[::2] == [second, first]
    asked = request([[digest(1), digest(9)], [digest(8), 4, digest(9)]])
    before = [*asked.image_data]
    with pytest.raises(UnknownImagesError) as error:
        references.resolve(asked, processor)
    assert error.value.digests == (digest(9), digest(8))
    assert all(one in str(error.value) for one in error.value.digests)
    assert asked.image_data == before
    assert (references.counters.num_hits, references.counters.num_unknown) == (3, 2)


@pytest.mark.parametrize("flushes", [False, True])
def test_a_reference_lives_as_long_as_what_it_refers_to(flushes: bool) -> None:
    references, processor = References(), make_processor()
    held = send(references, processor, [1])  # as a request that runs
    if flushes:
        processor.mm_preprocess_cache.clear()
    else:
        send(references, processor, list(range(2, 12)))
    with pytest.raises(UnknownImagesError):
        send(references, processor, [digest(1)])
    del held
    gc.collect()
    with pytest.raises(UnknownImagesError):
        send(references, processor, [digest(1)])
    send(references, processor, [1])
    assert send(references, processor, [digest(1)])[0].content_digest == digest(1)


def test_what_another_sent_anew_after_an_eviction_is_not_known_to_who_sent_it_before() -> None:
    references, processor = References(), make_processor()
    send(references, processor, [1], "a")
    processor.mm_preprocess_cache.clear()
    send(references, processor, [1], "b")
    with pytest.raises(UnknownImagesError):
        send(references, processor, [digest(1)], "a")


def test_what_a_request_refers_to_stays_while_its_other_images_push_it_out() -> None:
    references, processor = References(), make_processor()
    (first,) = send(references, processor, [1])
    assert send(references, processor, [*range(2, 13), digest(1)])[-1] is first
    assert first.artifact_key not in processor.mm_preprocess_cache


def test_a_cache_smaller_than_an_image_knows_nothing() -> None:
    references, processor = References(), make_processor(99)
    send(references, processor, [1])
    gc.collect()
    with pytest.raises(UnknownImagesError):
        send(references, processor, [digest(1)])


@pytest.mark.parametrize(
    ("ours", "theirs"), [(("a", None), ("b", None)), (("a", None), (None, "a")), ((None, None), ("a", None))]
)
def test_another_salt_or_key_knows_nothing(ours: tuple[Any, Any], theirs: tuple[Any, Any]) -> None:
    references, processor = References(), make_processor()

    async def prepare(processor: Any, sources: Any) -> list[Artifact]:
        artifact = Artifact(digest(1), processor._artifact_key(digest(1), 1))
        processor.mm_preprocess_cache.put(artifact.artifact_key, artifact)
        return [artifact]

    with references.sent_by(request(None, *ours)):
        asyncio.run(references.prepare(prepare, processor, [1]))
    hits = processor.mm_preprocess_cache.hits
    with pytest.raises(UnknownImagesError):
        references.resolve(request(digest(1), *theirs), processor)
    assert processor.mm_preprocess_cache.hits == hits, "nobody's order of eviction changes by another's guess"
    references.resolve(request(digest(1), *ours), processor)
    # An empty string is no salt, as in SGLang.
    if ours == (None, None):
        references.resolve(request(digest(1), "", ""), processor)


def test_each_prompt_of_a_batch_has_its_own_salt() -> None:
    references, processor = References(), make_processor()
    send(references, processor, [1], "a")
    send(references, processor, [2], "b")
    right = request([[digest(1)], digest(2)], ["a", "b"])
    references.resolve(right, processor)
    assert [right.image_data[0][0].digest, right.image_data[1].digest] == [digest(1), digest(2)]
    with pytest.raises(UnknownImagesError) as error:
        references.resolve(request([[digest(2)], [digest(2)]], ["a", "b"]), processor)
    assert error.value.digests == (digest(2),)
    one_for_all = request(digest(1), ["a", "a"], "")
    references.resolve(one_for_all, processor)
    assert [len(images) for images in one_for_all.image_data] == [1, 1]
    with pytest.raises(ReferenceRefusedError, match="one for each prompt"):
        references.resolve(request([[digest(1)]], ["a", "a"]), processor)


def test_options_that_change_the_image_make_another_one() -> None:
    references, processor = References(), make_processor()
    send(references, processor, [ImageData(1, detail="high"), 2])  # type: ignore[arg-type]
    for unknown in (digest(1), ImageData(digest(1), detail="low"), ImageData(digest(2), max_dynamic_patch=4)):
        with pytest.raises(UnknownImagesError):
            references.resolve(request([unknown]), processor)
    for known in (ImageData(digest(1), detail="high"), ImageData(digest(2), detail="auto"), {"url": digest(2)}):
        references.resolve(request([known]), processor)


def test_another_processor_knows_nothing() -> None:
    references, processor, other = References(), make_processor(), make_processor()
    send(references, processor, [1])
    other.processor_fingerprint = digest(5)
    other.mm_preprocess_cache = processor.mm_preprocess_cache
    with pytest.raises(UnknownImagesError):
        references.resolve(request([digest(1)]), other)


def test_a_hash_that_is_taken_at_its_word_teaches_nothing() -> None:
    references, processor = References(), make_processor(trusts=True)
    send(references, processor, [1, 2], content_hashes=[digest(1), None])
    references.resolve(request([digest(2)]), processor)
    with pytest.raises(UnknownImagesError):
        references.resolve(request([digest(1)]), processor)


def test_another_hash_beside_a_reference_is_refused() -> None:
    references, processor = References(), make_processor()
    send(references, processor, [1])
    with pytest.raises(ReferenceRefusedError, match="leave that out"):
        send(references, processor, [digest(1)], content_hashes=[digest(2)])
    with pytest.raises(ReferenceRefusedError, match="leave that out"):
        references.resolve(request([ImageData(digest(1), content_hash=digest(2))]), processor)
    assert send(references, processor, [digest(1)], content_hashes=[digest(1)])


def test_without_a_cache_and_with_another_processor_the_client_is_told() -> None:
    with pytest.raises(ReferenceRefusedError, match=r"is off \(--kv-image-cache-mb 0\); send the bytes"):
        References().resolve(request([digest(1)]), make_processor(0))
    with pytest.raises(ReferenceRefusedError, match="not known with object; send the bytes"):
        References().resolve(request([digest(1)]), object())
    ignored = request([digest(1)])
    References().resolve(ignored, None)
    assert ignored.image_data == [digest(1)], "a model without images ignores them, as SGLang does"


def test_where_the_cache_is_not_used_references_are_refused() -> None:
    known = KnownImage(digest(1), Artifact(digest(1), "key"))
    with pytest.raises(ReferenceRefusedError, match="send the bytes"):
        refuse_uncached(["data:", known])
    refuse_uncached(["data:", None])
    refuse_uncached(None)


def test_the_index_is_bounded_and_forgets_the_oldest() -> None:
    index, artifacts = ReferenceIndex(3), [Artifact(digest(number), str(number)) for number in range(4)]
    for artifact in artifacts[:3]:
        index.learn((None, None), artifact)
    assert index.find((None, None), "0") is artifacts[0]
    index.learn((None, None), artifacts[3])
    assert len(index) == 3
    found = [index.find((None, None), str(number)) for number in range(4)]
    assert found == [artifacts[0], None, artifacts[2], artifacts[3]]
    artifacts.clear()
    found.clear()
    del artifact
    gc.collect()
    assert index.find((None, None), "3") is None
    assert len(index) == 2


def test_a_dump_of_requests_holds_the_reference_and_no_features() -> None:
    known = KnownImage(digest(1), Artifact(digest(1), "key"))
    assert pickle.loads(pickle.dumps(known)) == digest(1)
    assert "Artifact" not in repr(known)
    assert Modality.IMAGE is QwenVLImageProcessor.artifact_modality


def test_a_request_for_embeddings_has_no_salt() -> None:
    references, processor = References(), make_processor()
    asked = SimpleNamespace(image_data=digest(1))
    with pytest.raises(UnknownImagesError):
        references.resolve(asked, processor)
    (made,) = send(references, processor, [1])
    references.resolve(asked, processor)
    assert asked.image_data.artifact is made


def test_a_long_salt_takes_no_more_memory_than_a_short_one() -> None:
    references, processor = References(), make_processor()
    send(references, processor, [1], "s" * 10**6)
    (pair,) = references.index._sent
    assert sum(map(len, pair)) < 500
    (again,) = send(references, processor, [digest(1)], "s" * 10**6)
    assert again.content_digest == digest(1)
    with pytest.raises(UnknownImagesError):
        send(references, processor, [digest(1)], "s" * 10**6 + "t")


def test_too_many_references_are_refused_before_they_are_looked_up() -> None:
    with pytest.raises(ReferenceRefusedError, match="more than 8192; send fewer"):
        References().resolve(request([digest(1)] * (MOST_REFERENCES + 1)), make_processor())


def test_the_message_names_some_and_the_error_all() -> None:
    error = UnknownImagesError([digest(number) for number in range(20)])
    assert len(error.digests) == 20
    assert str(error).count("sha256:") == 8
    assert str(error).endswith("and 12 more")


def test_a_refused_request_is_no_hit_of_the_cache() -> None:
    references, processor = References(), make_processor()
    send(references, processor, [1])
    hits = processor.mm_preprocess_cache.stats()["hits"]
    with pytest.raises(UnknownImagesError):
        send(references, processor, [digest(1), digest(2)])
    assert processor.mm_preprocess_cache.stats()["hits"] == hits
    assert references.counters.num_hits == 0


def test_what_is_kept_of_a_prepared_request_holds_no_image() -> None:
    references, processor = References(), make_processor()
    send(references, processor, [1])
    asked = request([[digest(1), "data:x"]])
    references.resolve(asked, processor)
    assert isinstance(asked.image_data[0][0], KnownImage)
    references.put_back(asked)
    assert asked.image_data == [[digest(1), "data:x"]]
