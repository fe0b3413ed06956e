"""Features on their way to the GPU: what is waited for there is counted on a GPU, what is kept is seen everywhere."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from star_kv_sglang.images import upload


def test_features_on_the_cpu_are_given_back_and_others_are_left_as_they_are() -> None:
    feature, other = torch.arange(6.0), [torch.zeros(1)]
    items = [SimpleNamespace(feature=feature), SimpleNamespace(feature=other), SimpleNamespace(feature=None)]
    with upload.kept_on_host(items):
        for item in items:
            item.feature = torch.zeros(1)
    assert items[0].feature is feature
    assert [item.feature.tolist() for item in items[1:]] == [[0.0], [0.0]]


def test_a_tower_with_another_type_than_its_model_is_refused() -> None:
    tower = SimpleNamespace(dtype=torch.float32)
    upload.require_tower_dtype(SimpleNamespace(visual=tower), torch.float32)
    upload.require_tower_dtype(SimpleNamespace(), torch.bfloat16)
    with pytest.raises(RuntimeError, match="float32 and the model with torch"):
        upload.require_tower_dtype(SimpleNamespace(visual=tower), torch.bfloat16)


def item(feature: Any, *, is_image: bool = True) -> Any:
    """An image of a request, as far as an upload looks at it."""
    return SimpleNamespace(feature=feature, is_image=lambda: is_image)


def test_nothing_is_pinned_for_a_cpu() -> None:
    feature = torch.arange(6.0)
    one = item(feature)
    upload.pin([one], torch.device("cpu"), torch.float32)
    assert one.feature is feature


def test_features_come_back_where_the_tower_fails() -> None:
    feature = torch.arange(6.0)
    one = item(feature)
    with pytest.raises(ValueError, match="tower"), upload.kept_on_host([one]):
        one.feature = torch.zeros(1)
        raise ValueError("tower")
    assert one.feature is feature


def test_where_there_is_no_pinned_memory_features_stay_pageable_and_it_is_said_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(feature: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("none left")

    monkeypatch.setattr(torch.Tensor, "pin_memory", refuse)
    upload._warn_once.cache_clear()
    features = [torch.arange(6.0) for _ in range(2)]
    items = [item(feature) for feature in features]
    with caplog.at_level(logging.WARNING):
        assert upload.pin(items, torch.device("cuda"), torch.float32) == 2
    assert [one.feature for one in items] == features
    assert len([record for record in caplog.records if "none left" in record.getMessage()]) == 1


@pytest.mark.parametrize(("dtype", "is_image"), [(torch.bfloat16, True), (None, True), (torch.float32, False)], ids=str)
def test_what_sglang_converts_and_what_is_no_image_is_left_to_it(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype | None, is_image: bool
) -> None:
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda feature: pytest.fail("it was pinned"))
    feature = torch.arange(6.0)
    one = item(feature, is_image=is_image)
    upload.pin([one], torch.device("cuda"), dtype)
    assert one.feature is feature


@pytest.mark.gpu
def test_an_upload_waits_for_nothing_that_the_stream_holds() -> None:
    """Kernels of a quarter of a second are queued; an upload from pageable memory would wait for them."""
    device = torch.device("cuda")
    features = [torch.rand(10_764, 1176).to(torch.bfloat16) for _ in range(2)]
    items = [item(feature) for feature in features]
    upload.pin(items, device, torch.bfloat16)  # the first pinned blocks are allocated, which waits
    big = torch.rand(8192, 8192, device=device)
    torch.cuda.synchronize()
    for one, feature in zip(items, features, strict=True):
        one.feature = feature
    done = torch.cuda.Event()
    for _ in range(12):
        big @ big
    done.record()
    with upload.kept_on_host(items):
        upload.pin(items, device, torch.bfloat16)
        moved = [one.feature.to(device, non_blocking=True) for one in items]
    assert not done.query()
    assert all(torch.equal(one.cpu(), feature) for one, feature in zip(moved, features, strict=True))
    assert all(one.feature is feature for one, feature in zip(items, features, strict=True))
