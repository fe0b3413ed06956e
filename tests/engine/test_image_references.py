"""A digest instead of an image: the answer is that with the bytes, bit for bit, and what is unknown is asked for."""

from __future__ import annotations

import hashlib
import io
from base64 import b64encode
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from star_kv_sglang.errors import ReferenceRefusedError, UnknownImagesError
from star_kv_sglang.images import runtime
from tests.engine.conversation import Answer, Chat, question, screenshot
from tests.engine.harness import TestEngine, running_engine

pytestmark = pytest.mark.slow

TOKEN_PIXELS = {"qwen2_vl": 28, "qwen2_5_vl": 28, "qwen3_vl": 32}
NUM_TURNS, NUM_OUTPUT = 3, 4


@dataclass(frozen=True)
class Picture:
    """A screenshot as bytes and as a reference."""

    url: str
    digest: str

    @classmethod
    def draw(cls, seed: int, token_pixels: int) -> Picture:
        file = io.BytesIO()
        screenshot(seed, 6, 6, token_pixels).save(file, "PNG")
        data = file.getvalue()
        url = "data:image/png;base64," + b64encode(data).decode()
        return cls(url, f"sha256:{hashlib.sha256(data).hexdigest()}")


@pytest.fixture(scope="module", params=TOKEN_PIXELS)
def kind(request: pytest.FixtureRequest) -> str:
    """The model."""
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def engine_of_kind(kind: str, checkpoint: Callable[[str], Path]) -> Iterator[TestEngine]:
    """An engine of this model with a policy and its image cache.

    It computes one request at a time: whether two that arrive together share a batch is a matter of microseconds, and
    a sum over a batch of two is rounded in another way than one over a batch of one.
    """
    arguments = {"kv_policy": "star", "kv_budget": 0.3, "max_running_requests": 1}
    with running_engine(checkpoint(kind), exact=True, **arguments) as engine:
        yield engine


@pytest.fixture
def engine(engine_of_kind: TestEngine) -> TestEngine:
    """It, without what was there before."""
    engine_of_kind.flush()
    return engine_of_kind


@pytest.fixture(scope="module")
def pictures(kind: str) -> list[Picture]:
    """Screenshots that the model's processor does not resize."""
    return [Picture.draw(seed, TOKEN_PIXELS[kind]) for seed in range(NUM_TURNS)]


def prompts() -> list[str]:
    """Three turns whose answers are words of our own: each is known before the engine is asked."""
    texts, chat = [], Chat()
    for turn in range(NUM_TURNS):
        chat = Chat(chat.ask(question(turn), screenshot(turn, 6, 6, 28)).text)
        texts.append(chat.text)
        chat = chat.reply("red")
    return texts


def ask(engine: TestEngine, text: str, images: Sequence[str], key: str | None = None) -> Answer:
    return engine.answer(Chat(text, tuple(images)), NUM_OUTPUT, logprob_from=0, extra_key=key)  # type: ignore[arg-type]


def batch(engine: TestEngine, **fields: Any) -> list[Answer]:
    """Several prompts or samples in one request."""
    from sglang.srt.managers.io_struct import GenerateReqInput

    sampling = {"temperature": 0, "max_new_tokens": NUM_OUTPUT, "ignore_eos": True, **fields.pop("sampling", {})}
    request = GenerateReqInput(sampling_params=sampling, return_logprob=True, logprob_start_len=0, **fields)

    async def go() -> Any:
        return [raw async for raw in engine.engine.tokenizer_manager.generate_request(request, None)][-1]

    return [Answer.of(raw) for raw in engine.run(go())]


def same(ours: Answer, theirs: Answer) -> bool:
    """To the last bit, and found in the tree as far."""
    return (ours.token_ids, ours.logprobs, ours.input_logprobs, ours.cached) == (
        theirs.token_ids, theirs.logprobs, theirs.input_logprobs, theirs.cached,
    )  # fmt: skip


def test_answers_are_those_with_the_bytes(engine: TestEngine, pictures: list[Picture]) -> None:
    hits = runtime.references().counters.num_hits
    texts = [*prompts(), prompts()[-1]]
    for turn, text in enumerate(texts):
        seen = pictures[: turn + 1]
        plain = ask(engine, text, [one.url for one in seen], "bytes")
        # The newest as bytes, as a client would; the last prompt comes again, wholly by reference.
        new = [one.url if index == turn else one.digest for index, one in enumerate(seen)]
        assert same(ask(engine, text, new, "references"), plain)
        assert plain.logprobs
    assert runtime.references().counters.num_hits - hits == 0 + 1 + 2 + 3


def test_batches_and_samples(engine: TestEngine, pictures: list[Picture]) -> None:
    texts, keys = prompts(), ["k"] * 2
    for one in pictures:
        ask(engine, texts[0], [one.url], "k")
        ask(engine, texts[0], [one.url], "l")
    sent = [[pictures[2].url], [pictures[0].url, pictures[1].url]]
    named = [[pictures[2].digest], [pictures[0].url, pictures[1].digest]]
    plain = batch(engine, text=texts[:2], image_data=sent, extra_key=keys)
    assert all(map(same, batch(engine, text=texts[:2], image_data=named, extra_key=["l"] * 2), plain))
    flat = [pictures[0].digest, pictures[1].digest]
    by_bytes = [pictures[0].url, pictures[1].url]
    one_each = [batch(engine, text=[texts[0]] * 2, image_data=images, extra_key="k") for images in (by_bytes, flat)]
    assert [one.token_ids for one in one_each[1]] == [one.token_ids for one in one_each[0]]
    for num_images in (1, 2):
        seen, twice = pictures[:num_images], {"text": texts[num_images - 1], "sampling": {"n": 2}}
        plain = batch(engine, image_data=[one.url for one in seen], extra_key="k", **twice)
        by_name = batch(engine, image_data=[one.digest for one in seen], extra_key="l", **twice)
        assert len(plain) == 2
        assert all(map(same, by_name, plain))


def test_what_is_unknown_is_named_and_nothing_happens(engine: TestEngine, pictures: list[Picture]) -> None:
    texts = prompts()
    ask(engine, texts[0], [pictures[0].url])
    manager = engine.engine.tokenizer_manager
    stats = manager.mm_processor.mm_preprocess_cache.stats()
    with pytest.raises(UnknownImagesError) as error:
        ask(engine, texts[2], [pictures[0].digest, pictures[1].digest, pictures[2].digest])
    assert error.value.digests == (pictures[1].digest, pictures[2].digest)
    assert manager.mm_processor.mm_preprocess_cache.stats()["misses"] == stats["misses"]
    assert manager.rid_to_state == {}
    for key in ("another", None):
        engine.flush() if key is None else None
        with pytest.raises(UnknownImagesError):
            ask(engine, texts[0], [pictures[0].digest], key)
    ask(engine, texts[0], [pictures[0].url])
    ask(engine, texts[0], [pictures[0].digest])


def test_bytes_that_are_no_image_teach_nothing(engine: TestEngine, pictures: list[Picture]) -> None:
    text, size = prompts()[0], len(runtime.references().index)
    data = b"no image"
    with pytest.raises(ValueError, match=r"(?i)image"):
        ask(engine, text, ["data:image/png;base64," + b64encode(data).decode()])
    assert len(runtime.references().index) == size
    with pytest.raises(UnknownImagesError):
        ask(engine, text, [f"sha256:{hashlib.sha256(data).hexdigest()}"])


def test_more_references_than_places_are_refused(engine: TestEngine, pictures: list[Picture]) -> None:
    text = prompts()[0]
    ask(engine, text, [pictures[0].url])
    with pytest.raises(ReferenceRefusedError, match="another number of images"):
        ask(engine, text, [pictures[0].digest] * 2)
