"""Processed screenshots that are kept: no answer and no choice changes, and each is processed and moved once."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import io
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from star_kv_sglang import cpu_mode
from star_kv_sglang.images import runtime
from star_kv_sglang.images.store import FeatureCounters
from tests.engine.conversation import Answer, Chat, question, screenshot
from tests.engine.harness import TestEngine, running_engine
from tests.engine.masked_reference import read_drops

pytestmark = pytest.mark.slow

NUM_TURNS, NUM_OUTPUT = 3, 4


@dataclass(frozen=True)
class Held:
    """One conversation.

    Attributes:
        answers: Of its turns, and of the last turn again under another cache salt, where nothing is known of it.
        kept: What every prune kept.
        num_hits: Of the image cache, after the turns.
        trusted: The last turn once more, with other bytes under the hashes of its screenshots.
        sharing: What the store of features did meanwhile.
        num_encoded: Screenshots that passed the vision tower in the turns, and then of one that four branches, under
            four salts and at the same moment, have just seen.
        reported: What ``/server_info`` says of screenshots at the end; empty without the cache.
    """

    answers: list[Answer]
    kept: list[Any]
    num_hits: int
    trusted: Answer
    sharing: FeatureCounters
    num_encoded: tuple[int, int]
    reported: dict[str, int]


def png(seed: int) -> bytes:
    """The bytes of a screenshot of 6 x 6 tokens."""
    file = io.BytesIO()
    screenshot(seed, 6, 6, 28).save(file, "PNG")
    return file.getvalue()


def url(data: bytes) -> str:
    """As clients send it."""
    return "data:image/png;base64," + base64.b64encode(data).decode()


def prompts() -> list[Chat]:
    """Three turns whose answers are words of our own: each is known before the engine is asked."""
    chats, chat = [], Chat()
    for turn in range(NUM_TURNS):
        chat = Chat(chat.ask(question(turn), screenshot(turn, 6, 6, 28)).text, (*chat.images, url(png(turn))))  # type: ignore[arg-type]
        chats.append(chat)
        chat = chat.reply("red")
    return chats


def hold(engine: TestEngine, trace: Path, *, names_hashes: bool) -> Held:
    """Hold the conversation; ask for its last turn again, and once more with bytes that nobody should read."""
    chats, before = prompts(), replace(runtime.store().counters)
    answers = [engine.answer(chat, NUM_OUTPUT, logprob_from=0, rid=f"turn{i}") for i, chat in enumerate(chats)]
    in_turns = engine.stats()["num_encoded_images"]
    num_hits: int = engine.engine.tokenizer_manager.mm_processor.mm_preprocess_cache.stats()["hits"]
    answers.append(engine.answer(chats[-1], NUM_OUTPUT, logprob_from=0, rid="again", extra_key="a"))
    hashes = [f"sha256:{hashlib.sha256(png(turn)).hexdigest()}" for turn in range(NUM_TURNS)]
    other = Chat(chats[-1].text, tuple(url(png(9)) for _ in hashes))  # type: ignore[misc]
    trusted = engine.answer(
        other, NUM_OUTPUT, logprob_from=0, rid="trusted", extra_key="b",
        content_hashes=hashes if names_hashes else None,
    )  # fmt: skip
    kept = [(drop.rid, drop.start, drop.kept.tolist()) for drop in read_drops(trace) if drop.rid != "trusted"]
    after = runtime.store().counters
    sharing = FeatureCounters(**{name: value - getattr(before, name) for name, value in asdict(after).items()})
    seen = Chat(Chat().ask(question(5), screenshot(5, 6, 6, 28)).text, (url(png(5)),))  # type: ignore[arg-type]
    before_branches = engine.stats()["num_encoded_images"]

    async def branches() -> None:
        async with engine.held():
            tasks = [await engine.queue(seen, 1, extra_key=f"branch{number}") for number in range(4)]
        await asyncio.gather(*tasks)

    engine.run(branches())
    num_encoded = in_turns, engine.stats()["num_encoded_images"] - before_branches
    return Held(answers, kept, num_hits, trusted, sharing, num_encoded, engine.state().get("star_kv_images", {}))


@pytest.fixture(
    scope="module",
    params=[
        "qwen2_5_vl",
        pytest.param("qwen2_vl", marks=pytest.mark.nightly),
        pytest.param("qwen3_vl", marks=pytest.mark.nightly),
    ],
)
def both(
    request: pytest.FixtureRequest, checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Held, Held]:
    """Without the cache, and with what a policy turns on and clients' hashes trusted."""
    held = []
    for flags in ({"kv_image_cache_mb": 0}, {"trust_mm_content_hashes": True}):
        trace = tmp_path_factory.mktemp("trace")
        with running_engine(
            checkpoint(request.param), exact=True, kv_policy="star", kv_budget=0.3,
            policy_config={"trace_dir": str(trace)}, **flags,
        ) as engine:  # fmt: skip
            # Without a cache SGLang compares a hash with the bytes for this model alone.
            names_hashes = request.param != "qwen3_vl" or "trust_mm_content_hashes" in flags
            held.append(hold(engine, trace, names_hashes=names_hashes))
    return held[0], held[1]


def test_answers_and_choices_are_the_same(both: tuple[Held, Held]) -> None:
    plain, cached = both
    assert [one.token_ids for one in cached.answers] == [one.token_ids for one in plain.answers]
    for one, other in zip(cached.answers, plain.answers, strict=True):
        if cpu_mode.is_gpu_present():
            # The tower encodes a screenshot alone or with others; a GPU rounds products of other sizes otherwise.
            assert one.logprobs == pytest.approx(other.logprobs, abs=1e-5)
        else:
            assert one.logprobs == other.logprobs
    assert [one.cached for one in cached.answers] == [one.cached for one in plain.answers]
    assert cached.kept == plain.kept
    assert plain.kept


def test_a_screenshot_that_comes_again_is_a_hit(both: tuple[Held, Held]) -> None:
    plain, cached = both
    assert plain.num_hits == 0
    assert cached.num_hits == 1 + 2  # of the second turn, and of the third


def test_a_trusted_hash_stands_for_the_bytes(both: tuple[Held, Held]) -> None:
    plain, cached = both
    assert cached.trusted.logprobs == cached.answers[-1].logprobs
    assert plain.trusted.logprobs != plain.answers[-1].logprobs, "other bytes are another prompt"


def test_the_vision_tower_runs_once_for_each_screenshot(both: tuple[Held, Held]) -> None:
    plain, cached = both
    assert cached.num_encoded == (NUM_TURNS, 1)
    # For Qwen3-VL on a large Hopper GPU SGLang keeps no embeddings unless it is asked to, or keeps images.
    assert plain.num_encoded in {(NUM_TURNS, 1), (sum(range(NUM_TURNS + 1)), 1)}


def test_features_move_once_and_travel_never(both: tuple[Held, Held]) -> None:
    plain, cached = both
    assert plain.sharing == FeatureCounters()
    num_requests, num_items = NUM_TURNS + 2, 1 + 2 + 3 + 3 + 3
    assert num_requests == len(cached.answers) + 1
    assert cached.sharing.num_moved == NUM_TURNS
    assert cached.sharing.num_sent == num_items
    assert cached.sharing.num_not_moved == 0


def test_what_became_of_screenshots_is_reported(both: tuple[Held, Held]) -> None:
    plain, cached = both
    assert plain.reported == {}
    reported = cached.reported
    assert reported["cache_hits"] >= cached.num_hits
    assert reported["features_processed"] >= NUM_TURNS
    mean = reported["features_processing_ms"] / reported["features_processed"]
    assert reported["saved_ms"] == round(reported["cache_hits"] * mean) > 0
