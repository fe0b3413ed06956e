"""What the policy takes beside K and V is counted when SGLang sizes its pool."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from star_kv_sglang.cache.side_pools import SidePools
from star_kv_sglang.config import PolicyConfig
from star_kv_sglang.engine import runtime
from star_kv_sglang.engine.memory import MemoryPlan
from star_kv_sglang.patches import hooks

NUM_LAYERS, NUM_GROUPS, HEAD_DIM = 28, 4, 128
GIB = 2**30
HALF: dict[str, Any] = {"budget": 0.5}
PRUNED_ONCE: dict[str, Any] = {"policy_config": '{"shrink_before_evict": false}'}


@pytest.fixture(autouse=True)
def chunk(monkeypatch: pytest.MonkeyPatch) -> Any:
    """chunk(size) -> the chunk size that SGLang has resolved; 8192 where a test says nothing."""
    from sglang.srt import runtime_context

    def resolve(size: int) -> None:
        schedule = SimpleNamespace(chunked_prefill_size=size)
        monkeypatch.setattr(runtime_context, "get_schedule", lambda: schedule)

    resolve(8192)
    monkeypatch.setattr(runtime_context, "get_parallel", lambda: SimpleNamespace(tp_size=1))
    return resolve


def configurator() -> Any:
    """What the hooks read of SGLang's pool configurator: the shape of Qwen2.5-VL-7B in bfloat16.

    Its ``server_args`` are what the user asked for, where the chunk size is not set.
    """
    return SimpleNamespace(
        kv_cache_dtype=torch.bfloat16,
        model_config=SimpleNamespace(
            get_num_kv_heads=lambda tp_size: NUM_GROUPS // tp_size,
            get_total_num_kv_heads=lambda: NUM_GROUPS,
            context_len=128_000,
        ),
        layer_info=SimpleNamespace(num_effective_layers=NUM_LAYERS),
        server_args=SimpleNamespace(chunked_prefill_size=None),
    )


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Any:
    """use(policy, flags) -> the process's policy from now on."""

    def install(policy: str, **flags: Any) -> MemoryPlan:
        given = {"budget": None, "token_budget": None, "observation_window": None, "policy_config": None, **flags}
        made = runtime.Runtime(PolicyConfig.from_flags(policy=policy, **given))
        monkeypatch.setattr(runtime, "_runtime", made)
        return made.memory

    return install


@pytest.mark.parametrize("num_slots", [1, 1001])
@pytest.mark.parametrize("norm_dtype", [torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize(
    "kinds",
    [
        pytest.param({}, id="offsets and norms"),
        pytest.param({"with_attention": True}, id="sums of attention"),
        pytest.param({"with_scores": True}, id="stored scores"),
        pytest.param({"units_per_layer": 4, "with_scores": True}, id="per head"),
    ],
)
def test_bytes_per_slot_are_what_the_pools_take(num_slots: int, norm_dtype: torch.dtype, kinds: dict[str, Any]) -> None:
    pools = SidePools.allocate(3, num_slots, norm_dtype=norm_dtype, device="cpu", **kinds)
    assert SidePools.bytes_per_slot(3, norm_dtype=norm_dtype, **kinds) * num_slots == pools.num_bytes


@pytest.mark.parametrize(
    ("policy", "flags", "per_slot"),
    [
        pytest.param("star-paper", {**HALF, **PRUNED_ONCE}, 28 * (2 + 2), id="offset and norm of each layer"),
        pytest.param("star-paper", {"budget": 1.0}, 28 * (2 + 2), id="nothing is pruned"),
        pytest.param("h2o", {**HALF, **PRUNED_ONCE}, 28 * (2 + 2 + 4), id="sums of attention"),
        pytest.param("snapkv", {**HALF, **PRUNED_ONCE}, 28 * (4 * 2 + 2), id="an offset for each head"),
        pytest.param("star-paper", HALF, 28 * (2 + 2 + 2) + 4, id="scores and segment numbers"),
        pytest.param("star-paper", {"token_budget": 1000}, 28 * (2 + 2 + 2) + 4, id="budget of the tree"),
        pytest.param("snapkv", HALF, 28 * (4 * (2 + 2) + 2) + 4, id="scores for each head"),
    ],
)
def test_side_pools_are_part_of_a_tokens_bytes(use: Any, policy: str, flags: dict[str, Any], per_slot: int) -> None:
    use(policy, **flags)
    kv = NUM_LAYERS * 2 * NUM_GROUPS * HEAD_DIM * 2
    assert hooks.after_compute_cell_size(kv, cast(Any, None), configurator(), NUM_LAYERS) == kv + per_slot


@pytest.mark.parametrize("available", [GIB, 50 * GIB], ids=["1 GiB", "50 GiB"])
def test_pool_side_pools_and_workspace_fit_into_what_is_there(use: Any, available: int) -> None:
    memory = use("star-paper", budget=0.2)
    kvc, kv = configurator(), NUM_LAYERS * 2 * NUM_GROUPS * HEAD_DIM * 2
    rest = hooks.after_profile_available_bytes(available, kvc, 0)
    num_slots = rest // hooks.after_compute_cell_size(kv, cast(Any, None), kvc, NUM_LAYERS)
    side = memory.bytes_per_slot(NUM_LAYERS, torch.bfloat16, num_groups=NUM_GROUPS) * num_slots
    assert num_slots * kv + side + (available - rest) <= available
    # it is a small part of the pool
    assert num_slots > 0.88 * (available // kv)


def test_workspace_holds_the_windows_attention_of_a_context_and_a_chunk(use: Any) -> None:
    memory = use("star-paper", budget=0.2)
    left = 50 * GIB - hooks.after_profile_available_bytes(50 * GIB, configurator(), 0)
    assert left == memory.workspace_bytes(NUM_LAYERS, 128_000 + 8192, num_groups=NUM_GROUPS)
    assert left > NUM_LAYERS * NUM_GROUPS * (128_000 + 8192) * 4


def test_workspace_takes_at_most_a_tenth_of_a_small_pool(use: Any) -> None:
    use("snapkv", budget=0.2)
    assert hooks.after_profile_available_bytes(1000, configurator(), 0) == 900


def test_prompts_that_are_not_chunked_have_no_chunk_beside_them(use: Any, chunk: Any) -> None:
    memory = use("star-paper", budget=0.2)
    chunk(-1)
    left = 50 * GIB - hooks.after_profile_available_bytes(50 * GIB, configurator(), 0)
    assert left == memory.workspace_bytes(NUM_LAYERS, 128_000, num_groups=NUM_GROUPS)


def test_nothing_is_left_for_scoring_where_everything_is_kept(use: Any) -> None:
    use("star-paper", budget=1.0)
    assert hooks.after_profile_available_bytes(50 * GIB, configurator(), 0) == 50 * GIB


def test_each_of_several_ranks_has_room_for_the_attention_of_all(use: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from sglang.srt import runtime_context

    memory = use("star-paper", budget=0.2)
    monkeypatch.setattr(runtime_context, "get_parallel", lambda: SimpleNamespace(tp_size=2))
    left = 50 * GIB - hooks.after_profile_available_bytes(50 * GIB, configurator(), 0)
    own, gathered = NUM_GROUPS // 2, 2 * NUM_GROUPS
    assert left == memory.workspace_bytes(NUM_LAYERS, 128_000 + 8192, num_groups=own + gathered)
    kv = NUM_LAYERS * 2 * own * HEAD_DIM * 2
    side = memory.bytes_per_slot(NUM_LAYERS, torch.bfloat16, num_groups=own)
    assert hooks.after_compute_cell_size(kv, cast(Any, None), configurator(), NUM_LAYERS) == kv + side
