"""Features on their way to the GPU: what is waited for there is counted on a GPU, what is kept is seen everywhere."""

from __future__ import annotations

from types import SimpleNamespace

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


def test_features_that_were_rounded_to_another_type_than_the_towers_are_refused() -> None:
    item = SimpleNamespace(feature=torch.zeros(2, dtype=torch.float16))
    upload.require_whole([item, SimpleNamespace(feature=None)], torch.float16)
    with pytest.raises(RuntimeError, match="float16 and the vision tower computes with torch"):
        upload.require_whole([item], torch.bfloat16)


def test_nothing_is_pinned_for_a_cpu() -> None:
    feature = torch.arange(6.0)
    item = SimpleNamespace(feature=feature)
    upload.pin([item], torch.device("cpu"))
    assert item.feature is feature


@pytest.mark.gpu
def test_an_upload_waits_for_nothing_that_the_stream_holds() -> None:
    """Kernels of a quarter of a second are queued; an upload from pageable memory would wait for them."""
    device = torch.device("cuda")
    features = [torch.rand(10_764, 1176).to(torch.bfloat16) for _ in range(2)]
    items = [SimpleNamespace(feature=feature) for feature in features]
    upload.pin(items, device)  # the first pinned blocks are allocated, which waits
    big = torch.rand(8192, 8192, device=device)
    torch.cuda.synchronize()
    for item, feature in zip(items, features, strict=True):
        item.feature = feature
    done = torch.cuda.Event()
    for _ in range(12):
        big @ big
    done.record()
    with upload.kept_on_host(items):
        upload.pin(items, device)
        moved = [item.feature.to(device, non_blocking=True) for item in items]
    assert not done.query()
    assert all(torch.equal(one.cpu(), feature) for one, feature in zip(moved, features, strict=True))
    assert all(item.feature is feature for item, feature in zip(items, features, strict=True))
