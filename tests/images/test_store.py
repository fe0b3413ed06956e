"""Features in shared memory: the same bits in another process, nothing left behind, nothing copied."""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import os
import pickle
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
from sglang.srt.multimodal.cache.preprocess_cache import MultimodalPreprocessCache

from star_kv_sglang import server_args
from star_kv_sglang.errors import UnsupportedSetupError
from star_kv_sglang.images import runtime, segment
from star_kv_sglang.images.segment import Segment, map_privately
from star_kv_sglang.images.shared_feature import SharedFeature
from star_kv_sglang.images.store import FeatureStore
from star_kv_sglang.patches import activate, hooks

NUM_KEPT, FEATURE_BYTES = 100, 65_536


@dataclass(frozen=True)
class Artifact:
    """What SGLang keeps of a processed image, as far as the store looks at it."""

    feature: torch.Tensor | None


class Request:
    """What the API process remembers of a request until it is over."""


def segments() -> set[int]:
    """Inodes of the segments that this process holds."""
    files = [fd for fd in Path("/proc/self/fd").iterdir() if fd.is_symlink()]
    return {fd.stat().st_ino for fd in files if "star-kv-feature" in os.readlink(fd)}


def num_segments() -> int:
    """How many they are."""
    return len(segments())


def num_files() -> int:
    """Above the highest descriptor of this process."""
    return max(int(fd.name) for fd in Path("/proc/self/fd").iterdir()) + 1


@contextmanager
def at_most_files(limit: int) -> Iterator[int]:
    """This process may open no descriptor from ``limit`` on."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, before[1]))
    try:
        yield limit
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def sent(store: FeatureStore, feature: torch.Tensor, request: Any) -> Any:
    """What a request carries instead of the feature."""
    item = SimpleNamespace(feature=feature)
    store.detach_features([item], request)
    return item.feature


def received_sums(data: list[bytes], results: Any) -> None:
    """Another process: unpickle features, write into them, say what they held."""
    tensors = [pickle.loads(one).materialize() for one in data]
    results.put([float(one.sum()) for one in tensors])
    for one in tensors:
        one.zero_()


def test_another_process_maps_the_same_bits_and_cannot_change_them() -> None:
    store, dtypes = FeatureStore(), (torch.float32, torch.bfloat16, torch.uint8)
    features = [torch.arange(6 * 5).reshape(6, 5).to(dtype) for dtype in dtypes]
    moved, request = [store.move(one) for one in features], Request()
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    carried = [pickle.dumps(sent(store, one, request)) for one in moved]
    process = context.Process(target=received_sums, args=(carried, results))
    process.start()
    assert results.get(timeout=200) == [float(one.sum()) for one in features]
    process.join()
    assert all(torch.equal(one, other) for one, other in zip(moved, features, strict=True))
    assert [one.dtype for one in moved] == list(dtypes)


def test_what_travels_is_small() -> None:
    store = FeatureStore()
    carried = sent(store, store.move(torch.zeros(1000, 1000)), Request())
    assert len(pickle.dumps(carried)) < 1000
    assert store.counters.num_unsent_bytes == 4_000_000


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_features_are_rounded_as_the_vision_tower_would_and_take_half_the_memory(dtype: torch.dtype) -> None:
    store, feature = FeatureStore(), torch.randn(300, 40)
    moved = store.move(feature, dtype)
    assert torch.equal(moved, feature.type(dtype))
    assert moved.untyped_storage().nbytes() == feature.nbytes // 2
    whole = store.move(torch.arange(4, dtype=torch.uint8), dtype)
    assert whole.dtype == torch.uint8


def test_a_feature_lives_as_long_as_the_cache_or_a_request_holds_it() -> None:
    store, before = FeatureStore(), num_segments()
    moved, request = store.move(torch.ones(100)), Request()
    carried = sent(store, moved, request)
    del moved  # the cache has dropped it
    gc.collect()
    assert pickle.loads(pickle.dumps(carried)).materialize().sum() == 100
    del request
    gc.collect()
    assert num_segments() == before


def test_ten_thousand_screenshots_leave_nothing_behind() -> None:
    store, before = FeatureStore(), num_segments()
    for number in range(10_000):
        moved = store.move(torch.full((16,), float(number)))
        sent(store, moved, Request())
    del moved
    gc.collect()
    assert num_segments() == before
    assert store.counters.num_moved == 10_000


def test_ten_thousand_screenshots_in_a_small_cache_take_no_more_than_the_cache() -> None:
    """SGLang's own cache evicts; requests come and go beside it."""
    kept: MultimodalPreprocessCache[int, Artifact] = MultimodalPreprocessCache(NUM_KEPT * FEATURE_BYTES)
    store, before, process = FeatureStore(), num_segments(), psutil.Process()
    most, resident = 0, []
    for number in range(10_000):
        (artifact,) = store.move_artifacts([Artifact(torch.full((FEATURE_BYTES // 4,), float(number)))])
        assert artifact.feature is not None
        kept.put(number, artifact, artifact.feature.nbytes)
        sent(store, artifact.feature, Request())
        if number % 500 == 499:
            most = max(most, num_segments() - before)
            resident.append(process.memory_info().rss)
    assert kept.stats()["evictions"] == 10_000 - NUM_KEPT
    assert most <= NUM_KEPT + 1, "and the one that was moved last"
    assert max(resident[4:]) - min(resident[4:]) < 10 * NUM_KEPT * FEATURE_BYTES
    del artifact
    kept.clear()
    gc.collect()
    assert num_segments() == before


def test_features_hold_one_descriptor_and_their_receiver_none() -> None:
    store, before = FeatureStore(), num_segments()
    moved, request = store.move(torch.ones(100)), Request()
    assert num_segments() == before + 1
    received = pickle.loads(pickle.dumps(sent(store, moved, request))).materialize()
    assert num_segments() == before + 1
    assert received.sum() == 100


def test_half_of_the_files_that_a_process_may_open_are_left_to_its_clients() -> None:
    store, features = FeatureStore(), []
    # Others of this process hold theirs: half of the limit is left beside them.
    with at_most_files(2 * num_files() + 100) as limit:
        features = [store.move(torch.ones(10)) for _ in range(limit)]
        assert segment.most_segments() == limit // 2
        assert store.counters.num_moved == limit // 2
        assert store.counters.num_not_moved == limit - limit // 2
        del features[: limit // 4]
        gc.collect()
        assert sent(store, store.move(torch.ones(10)), Request()).address, "what was given back is used again"


def test_without_a_descriptor_the_feature_stays_where_it_is() -> None:
    """Others can have taken them all."""
    store, feature, taken = FeatureStore(), torch.ones(10), []
    with at_most_files(num_files() + 20):
        try:
            while True:
                taken.append(os.open(os.devnull, os.O_RDONLY))
        except OSError:
            assert store.move(feature) is feature
            # One is enough to make the segment, and then there is none to map it.
            os.close(taken.pop())
            assert store.move(feature) is feature
        finally:
            for fd in taken:
                os.close(fd)
        assert store.counters.num_not_moved == 2
        assert store.move(feature) is not feature


def test_features_that_are_gone_are_an_error_of_their_request_alone() -> None:
    store = FeatureStore()
    moved, request = store.move(torch.ones(100)), Request()
    data = pickle.dumps(sent(store, moved, request))
    del moved, request
    gc.collect()
    late = pickle.loads(data)
    with pytest.raises(RuntimeError, match="could not be mapped"):
        late.materialize()


def test_another_file_under_the_same_descriptor_is_not_taken_for_the_features() -> None:
    first = Segment(64)
    address = first.address
    del first
    gc.collect()
    second = Segment(64)
    assert second.address.fd == address.fd
    with pytest.raises(OSError, match="no longer holds"):
        map_privately(address)


def test_without_memory_the_feature_stays_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int, start: int, length: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(segment.os, "posix_fallocate", full)
    store, feature, before = FeatureStore(), torch.ones(10), num_segments()
    assert store.move(feature) is feature
    assert store.counters.num_not_moved == 1
    assert sent(store, feature, Request()) is feature, "SGLang copies it, as without the store"
    assert num_segments() == before


def test_features_on_a_device_and_images_without_features_stay_as_they_are() -> None:
    artifacts = [Artifact(None), Artifact(torch.ones(3, device="meta")), Artifact(torch.ones(0))]
    moved = FeatureStore().move_artifacts(artifacts)
    assert all(one is other for one, other in zip(moved, artifacts, strict=True))


def test_a_request_that_is_over_gets_a_copy() -> None:
    store = FeatureStore()
    moved = store.move(torch.ones(10))
    assert sent(store, moved, None) is moved


def test_a_discarded_feature_leaves_the_owner_its_memory() -> None:
    store = FeatureStore()
    moved, request = store.move(torch.ones(10)), Request()
    received = pickle.loads(pickle.dumps(sent(store, moved, request)))
    assert isinstance(received, SharedFeature)
    received.close_and_unlink()
    assert moved.sum() == 10
    assert pickle.loads(pickle.dumps(sent(store, moved, request))).materialize().sum() == 10


def test_where_the_receiver_takes_no_addresses_features_travel_as_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """With --skip-tokenizer-init SGLang turns no pointer into a tensor: the forward would get the pointer."""

    async def send(manager: Any, request: Any) -> Any:
        return request

    feature, known = runtime.store().move(torch.ones(10)), Request()
    manager = SimpleNamespace(rid_to_state={"r": known}, enable_metrics=False)
    for takes, kind in ((False, torch.Tensor), (True, SharedFeature)):
        monkeypatch.setattr(hooks, "_receiver_takes_addresses", lambda takes=takes: takes)
        item = SimpleNamespace(feature=feature)
        request = SimpleNamespace(rid="r", mm_inputs=SimpleNamespace(mm_items=[item]))
        asyncio.run(hooks.around_send_one_request(send, manager, request))
        assert isinstance(item.feature, kind)


def test_a_container_with_little_memory_gets_a_small_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(server_args, "CONTAINER_LIMITS", (limit, tmp_path / "none"))
    whole = server_args.default_image_cache_mb()
    limit.write_text("max\n")
    assert server_args.default_image_cache_mb() == whole
    limit.write_text(f"{800 * 2**20}\n")
    assert server_args.default_image_cache_mb() == 100


def test_where_no_process_may_open_anothers_files_the_start_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    assert segment.can_be_mapped_by_a_child()
    monkeypatch.setattr(segment, "_path", lambda address: "/proc/none/fd/0")
    segment.can_be_mapped_by_a_child.cache_clear()
    with pytest.raises(UnsupportedSetupError, match="use --kv-image-cache-mb 0"):
        activate.install_image_sharing()
    segment.can_be_mapped_by_a_child.cache_clear()


@pytest.mark.parametrize(
    "processor",
    [None, SimpleNamespace(mm_preprocess_cache=SimpleNamespace(enabled=False))],
    ids=["a model without images", "no cache"],
)
def test_where_no_screenshot_is_kept_nothing_is_reported(processor: Any) -> None:
    async def states(manager: Any) -> list[dict[str, Any]]:
        return [{"a": 1}]

    manager: Any = SimpleNamespace(mm_processor=processor)
    assert asyncio.run(hooks.around_get_internal_state(states, manager)) == [{"a": 1}]
