"""Screenshots in shared memory when things go wrong: nothing is answered otherwise, and nothing is held for longer."""

from __future__ import annotations

import asyncio
import errno
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from star_kv_sglang.images import runtime, segment
from tests.engine.conversation import Answer, Chat, question, screenshot
from tests.engine.harness import TestEngine, running_engine
from tests.images.test_store import segments

pytestmark = pytest.mark.slow

TOKEN_PIXELS = 28
CACHE_MB = 3
"""Room for the features of four screenshots of 6 x 6 tokens, and not for those of one of 16 x 16."""
POOL = 500
NUM_OUTPUT = 4


@dataclass(frozen=True)
class Said:
    """What of an answer must not depend on where features lie."""

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    cached: int
    retractions: int

    @classmethod
    def of(cls, answer: Answer) -> Said:
        return cls(answer.token_ids, answer.logprobs, answer.cached, answer.retractions)


def chat(*seeds: int, tokens: int = 6) -> Chat:
    """One question about screenshots of ``tokens`` x ``tokens`` tokens."""
    images = [screenshot(seed, tokens, tokens, TOKEN_PIXELS) for seed in seeds]
    return Chat().ask(question(seeds[0]), *images)


def ask(engine: TestEngine, *chats: Chat, num_tokens: int = NUM_OUTPUT, ignore_eos: bool = True) -> list[Said]:
    """What is answered to requests that come together."""
    answers = engine.answer_together(chats, num_tokens, logprob_from=0, ignore_eos=ignore_eos)
    return [Said.of(answer) for answer in answers]


def short_of_room(engine: TestEngine) -> list[list[Said]]:
    """A prefix is evicted and needed again; a screenshot is larger than the cache; requests are put back."""
    engine.flush()
    crowd = [chat(20 + number) for number in range(8)]
    return [
        ask(engine, chat(1, 2)),
        ask(engine, chat(3, tokens=16)),
        ask(engine, chat(4, tokens=14)),
        ask(engine, chat(1, 2)),
        # SGLang keeps room for all of an answer that nothing ends: none of these would be put back.
        ask(engine, *crowd, num_tokens=100, ignore_eos=False),
        ask(engine, chat(3, tokens=16)),
        ask(engine, chat(1, 2)),
    ]


@contextmanager
def running(model: Path, cache_mb: int) -> Iterator[TestEngine]:
    """An engine with a short pool."""
    with running_engine(
        model, exact=True, kv_policy="star", kv_budget=0.5, kv_image_cache_mb=cache_mb, max_total_tokens=POOL,
        schedule_conservativeness=0.05,
    ) as engine:  # fmt: skip
        yield engine


@pytest.fixture(scope="module")
def other_weights(checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model with another vision tower."""
    folder = tmp_path_factory.mktemp("models") / "other"
    shutil.copytree(checkpoint("qwen2_5_vl"), folder)
    (file,) = folder.glob("*.safetensors")
    weights = {name: -value if "visual" in name else value for name, value in load_file(file).items()}
    save_file(weights, file, metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def plain(checkpoint: Callable[[str], Path]) -> list[list[Said]]:
    """What is answered without the cache."""
    with running(checkpoint("qwen2_5_vl"), 0) as engine:
        return short_of_room(engine)


@pytest.fixture(scope="module")
def plain_with_other_weights(other_weights: Path) -> list[Said]:
    """What a fresh engine with the other weights answers to its first question."""
    with running(other_weights, 0) as engine:
        return ask(engine, chat(1, 2))


@pytest.fixture(scope="module")
def others() -> set[int]:
    """Segments that this process holds for engines of other tests, which have ended and are not collected yet."""
    return segments()


@pytest.fixture(scope="module")
def engine(
    others: set[int], checkpoint: Callable[[str], Path], plain: list[list[Said]], plain_with_other_weights: list[Said]
) -> Iterator[TestEngine]:
    """One engine with the cache, when the others are gone."""
    with running(checkpoint("qwen2_5_vl"), CACHE_MB) as engine:
        yield engine


def image_cache(engine: TestEngine) -> Any:
    """SGLang's cache of processed images."""
    return engine.engine.tokenizer_manager.mm_processor.mm_preprocess_cache


def test_evicted_prefixes_large_screenshots_and_requests_that_were_put_back(
    engine: TestEngine, plain: list[list[Said]]
) -> None:
    before = runtime.store().counters.num_moved
    assert short_of_room(engine) == plain
    again, crowd = plain[3][0], plain[4]
    assert again.cached == 0, "its prefix was evicted"
    assert sum(one.retractions for one in crowd) > 0
    stats = image_cache(engine).stats()
    assert stats["hits"] >= 2, "of the evicted prefix"
    assert runtime.store().counters.num_moved - before == stats["misses"]


def test_memory_is_the_caches_once_nothing_runs(engine: TestEngine, others: set[int], plain: list[list[Said]]) -> None:
    short_of_room(engine)
    stats = image_cache(engine).stats()
    assert stats["evictions"] > 0
    assert stats["size_bytes"] <= CACHE_MB * 2**20
    assert len(segments() - others) == stats["entries"]


@pytest.mark.parametrize("number", [errno.ENOMEM, errno.ENOSPC, errno.EMFILE])
def test_without_memory_for_features_they_are_copied(
    engine: TestEngine, plain: list[list[Said]], monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def full(*args: Any) -> None:
        raise OSError(number, "injected")

    before = runtime.store().counters.num_not_moved
    with monkeypatch.context() as patch:
        patch.setattr(segment.os, "memfd_create" if number == errno.EMFILE else "posix_fallocate", full)
        assert short_of_room(engine) == plain
        assert runtime.store().counters.num_not_moved > before
    engine.flush()
    assert ask(engine, chat(1, 2)) == plain[0]


@contextmanager
def slow_processor(engine: TestEngine) -> Iterator[tuple[threading.Event, threading.Event]]:
    """Screenshots are not processed before the second event is set; the first one says that somebody waits."""
    processor, begun, may_go_on = engine.engine.tokenizer_manager.mm_processor, threading.Event(), threading.Event()
    prepare = processor.prepare_artifact_batch

    def wait(entries: Sequence[Any], **options: Any) -> Any:
        begun.set()
        assert may_go_on.wait(60)
        return prepare(entries, **options)

    processor.prepare_artifact_batch = wait
    try:
        yield begun, may_go_on
    finally:
        may_go_on.set()
        del processor.prepare_artifact_batch


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what another task or thread does."""
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.005)


@pytest.mark.parametrize("leaves", ["owner", "guest"])
@pytest.mark.parametrize("how", ["hangs up", "is aborted"])
def test_who_leaves_while_a_screenshot_is_processed_takes_nothing_from_the_other(
    engine: TestEngine, others: set[int], leaves: str, how: str
) -> None:
    """Two requests with the same new screenshots; one of them processes them for both."""
    whole = {"logprob_from": 0, "custom_params": {"kv_budget": 1.0}}
    engine.flush()
    alone = engine.answer(chat(1, 2), NUM_OUTPUT, **whole)
    engine.flush()
    joins = image_cache(engine).stats()["singleflight_joins"]

    def has_joined() -> bool:
        return bool(image_cache(engine).stats()["singleflight_joins"] > joins)

    async def meet() -> Answer:
        with slow_processor(engine) as (begun, may_go_on):
            tasks = {}
            for rid, is_there in (("owner", begun.is_set), ("guest", has_joined)):
                tasks[rid] = asyncio.create_task(engine.answer_soon(chat(1, 2), NUM_OUTPUT, rid=rid, **whole))
                await until(is_there)
            gone = tasks.pop(leaves)
            if how == "hangs up":
                gone.cancel()
                await asyncio.wait({gone})
            else:
                engine.abort(leaves)
            may_go_on.set()
        (stays,) = tasks.values()
        answer = await asyncio.wait_for(stays, 60)
        await asyncio.wait({gone}, timeout=60)
        assert gone.done()
        return answer

    answer = engine.run(meet())
    assert answer.token_ids == alone.token_ids
    assert answer.logprobs == pytest.approx(alone.logprobs, abs=1e-4), "the other may run in the same batch"
    engine.run(engine.idle_stats())
    assert len(segments() - others) == image_cache(engine).stats()["entries"] == 2


def test_a_flush_gives_all_memory_back(engine: TestEngine, others: set[int]) -> None:
    ask(engine, chat(1, 2))
    assert segments() - others
    engine.flush()
    assert not segments() - others


def test_new_weights_answer_as_in_a_fresh_engine(
    engine: TestEngine, plain: list[list[Said]], plain_with_other_weights: list[Said],
    checkpoint: Callable[[str], Path], other_weights: Path,
) -> None:  # fmt: skip
    """What the old vision tower saw is not read again, and the way back is the same.

    Memory that SGLang lends out (``release_memory_occupation``) goes the same way, through its ``flush_cache``; SGLang
    does that on a GPU alone.
    """
    from sglang.srt.managers.io_struct import UpdateWeightFromDiskReqInput

    def update(model: Path) -> None:
        request = UpdateWeightFromDiskReqInput(model_path=str(model))
        success, message, _ = engine.run(engine.engine.tokenizer_manager.update_weights_from_disk(request))
        assert success, message

    engine.flush()
    assert ask(engine, chat(1, 2)) == plain[0]
    update(other_weights)
    assert ask(engine, chat(1, 2)) == plain_with_other_weights
    assert plain_with_other_weights != plain[0]
    update(checkpoint("qwen2_5_vl"))
    assert ask(engine, chat(1, 2)) == plain[0]
