"""What a user can get wrong at the start: refused before weights load, with all reasons and what to do."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from star_kv_sglang import cpu_mode
from star_kv_sglang.errors import ConfigError, UnsupportedSetupError
from tests.engine.machine import engine_arguments, server_command

STAR: dict[str, Any] = {"kv_policy": "star"}


def parse(model: Path, *, exact: bool = True, **flags: Any) -> Any:
    """SGLang's arguments with the policy's flags, as the command line makes them; loads no weights."""
    from star_kv_sglang.server_args import StarServerArgs

    arguments: dict[str, Any] = engine_arguments(exact=exact, model_path=str(model), **flags)
    record = StarServerArgs(**arguments)
    record.resolve_once()
    return record


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        pytest.param({**STAR, "kv_budget": 0.0}, ["--kv-budget 0.0", "(0, 1]"], id="budget_zero"),
        pytest.param({**STAR, "kv_budget": -0.2}, ["--kv-budget -0.2", "(0, 1]"], id="budget_negative"),
        pytest.param({**STAR, "kv_budget": 1.5}, ["--kv-budget 1.5", "(0, 1]"], id="budget_above_one"),
        pytest.param({**STAR, "kv_budget": float("nan")}, ["--kv-budget nan", "(0, 1]"], id="budget_nan"),
        pytest.param(
            {**STAR, "kv_budget": 0.2, "kv_token_budget": 100},
            ["--kv-budget", "--kv-token-budget", "one of them"],
            id="both_budgets",
        ),
        pytest.param({"kv_policy": "stars"}, ["'stars'", "one of full, ", "snapkv, star, "], id="unknown_policy"),
        pytest.param({"kv_budget": 0.2}, ["--kv-budget", "--kv-policy star"], id="budget_without_policy"),
        pytest.param(
            {**STAR, "kv_policy_config": '{"boost_alfa": 1}'}, ["boost_alfa", "boost_alpha"], id="unknown_key"
        ),
        pytest.param({**STAR, "kv_policy_config": '{"boost": '}, ["not valid JSON"], id="broken_json"),
        pytest.param({**STAR, "kv_policy_config": "/no/such.json"}, ["/no/such.json", "file"], id="no_such_file"),
        pytest.param({**STAR, "kv_policy_config": '{"budget": 0.3}'}, ["budget", "flag"], id="flag_in_the_object"),
        pytest.param({**STAR, "kv_policy_config": '{"frame_floor": 1.0}'}, ["frame_floor 1.0"], id="floor_of_one"),
        pytest.param({**STAR, "kv_policy_config": '{"pool_width": "5"}'}, ["pool_width"], id="text_for_a_number"),
        pytest.param({**STAR, "kv_observation_window": 0}, ["observation_window"], id="no_window"),
        pytest.param(
            {**STAR, "kv_observation_window": 8, "kv_policy_config": '{"observation_window": 8}'},
            ["given twice"],
            id="window_twice",
        ),
    ],
)
def test_value_is_refused(checkpoint: Callable[[str], Path], flags: dict[str, Any], parts: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(checkpoint("qwen2_5_vl"), **flags)
    assert all(part in str(caught.value) for part in parts), caught.value


def test_all_unsupported_options_are_named_together(checkpoint: Callable[[str], Path]) -> None:
    with pytest.raises(UnsupportedSetupError) as caught:
        parse(
            checkpoint("qwen2_5_vl"),
            **STAR,
            speculative_algorithm="EAGLE",
            enable_hierarchical_cache=True,
            enable_lmcache=True,
            disaggregation_mode="prefill",
            enable_streaming_session=True,
            disable_radix_cache=True,
            pp_size=2,
            dcp_size=2,
        )
    flags = (
        "--speculative-algorithm", "--enable-hierarchical-cache", "--enable-lmcache", "--disaggregation-mode",
        "--enable-streaming-session", "--disable-radix-cache", "--pp-size", "--dcp-size",
    )  # fmt: skip
    assert len(caught.value.reasons) == len(flags)
    assert all(flag in str(caught.value) for flag in flags)
    assert "--kv-policy full" in str(caught.value)


def test_windows_are_not_recognised_without_screenshots_or_a_tokenizer(checkpoint: Callable[[str], Path]) -> None:
    with pytest.raises(UnsupportedSetupError) as caught:
        parse(checkpoint("llama"), **STAR, kv_recognise_windows="all", skip_tokenizer_init=True)
    vision, tokenizer = caught.value.reasons
    assert "a model without vision" in vision
    assert "--skip-tokenizer-init" in tokenizer


def test_what_shows_late_is_named_with_what_shows_early(checkpoint: Callable[[str], Path]) -> None:
    """The page size is looked at when SGLang has resolved its arguments, the type of the cache before."""
    if cpu_mode.is_gpu_present():
        pytest.skip("a page size that a CPU cannot have")
    with pytest.raises(UnsupportedSetupError) as caught:
        parse(checkpoint("qwen2_5_vl"), **STAR, kv_cache_dtype="fp8_e5m2", page_size=16)
    quantised, pages = caught.value.reasons
    assert "--kv-cache-dtype" in quantised and "--page-size 16" in pages


@pytest.mark.parametrize(
    ("policy", "config"),
    [("snapkv", {}), ("guikv", {}), ("stlite", {}), ("fastgen", {}), ("lookm", {}), ("star", {"merge": "averaged"})],
)
def test_a_policy_that_ranks_cannot_divide_is_refused(
    checkpoint: Callable[[str], Path], policy: str, config: dict[str, str]
) -> None:
    with pytest.raises(UnsupportedSetupError) as caught:
        parse(checkpoint("qwen2_5_vl"), kv_policy=policy, tp_size=2, kv_policy_config=json.dumps(config))
    (reason,) = caught.value.reasons
    assert reason.startswith(f"--kv-policy {policy} with tensor parallelism (--tp-size): ")


def test_merging_in_8_bits_is_refused(checkpoint: Callable[[str], Path]) -> None:
    with pytest.raises(UnsupportedSetupError, match=r"--kv-policy lookm merges what it drops, and --kv-cache-dtype"):
        parse(checkpoint("qwen2_5_vl"), kv_policy="lookm", kv_cache_dtype="fp8_e4m3")


def test_what_every_request_would_ask_for_is_checked_at_the_start(checkpoint: Callable[[str], Path]) -> None:
    preferred = {"kv_share": True, "temperature": 0, "custom_params": {"kv_budget": 7, "kv_trac": True, "other": 1}}
    with pytest.raises(UnsupportedSetupError) as caught:
        parse(checkpoint("qwen2_5_vl"), **STAR, preferred_sampling_params=json.dumps(preferred), enable_lmcache=True)
    flag = "--preferred-sampling-params: "
    cache, misplaced, value, key = caught.value.reasons
    assert "--enable-lmcache" in cache
    assert misplaced.startswith(f"{flag}kv_share at the top level")
    assert misplaced.endswith('"custom_params": {"kv_share": ...}')
    assert value.startswith(f"{flag}kv_budget 7 in custom_params")
    assert key.startswith(f"{flag}kv_trac is not known") and "did you mean kv_trace?" in key
    with pytest.raises(UnsupportedSetupError, match="custom_params 'x' must be an object"):
        parse(checkpoint("qwen2_5_vl"), **STAR, preferred_sampling_params='{"custom_params": "x"}')


def test_right_preferences_go_through(checkpoint: Callable[[str], Path]) -> None:
    right = '{"temperature": 0, "custom_params": {"kv_budget": 0.1, "of_another_plugin": 3}}'
    assert parse(checkpoint("qwen2_5_vl"), **STAR, preferred_sampling_params=right).kv_policy == "star"
    # Without a policy nobody reads them.
    assert parse(checkpoint("qwen2_5_vl"), preferred_sampling_params='{"custom_params": {"kv_budget": 7}}')


def test_ways_to_answer_that_check_nothing_are_refused(
    checkpoint: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SGLANG_RUST_SERVER", "1")
    monkeypatch.setenv("SGLANG_HTTP_SERVER_APP_PATH", "mine:app")
    with pytest.raises(UnsupportedSetupError) as caught:
        parse(checkpoint("qwen2_5_vl"), **STAR, tokenizer_worker_num=2)
    rust, app = caught.value.reasons
    assert "SGLANG_RUST_SERVER" in rust and "unset it" in rust
    assert "SGLANG_HTTP_SERVER_APP_PATH=mine:app" in app and "one worker" in app
    monkeypatch.delenv("SGLANG_RUST_SERVER")
    assert parse(checkpoint("qwen2_5_vl"), **STAR), "one process that answers imports no app by name"


def test_what_sglang_cannot_resolve_does_not_hide_what_is_refused(
    checkpoint: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from star_kv_sglang.server_args import StarServerArgs

    def fails(record: Any) -> None:
        raise ValueError("SGLang's own")

    # Not by the name in SGLang's module: where a plugin was loaded in this process, it stands for ours.
    monkeypatch.setattr(StarServerArgs.__base__, "resolve_once", fails)
    with pytest.raises(UnsupportedSetupError, match="--speculative-algorithm"):
        parse(checkpoint("qwen2_5_vl"), **STAR, speculative_algorithm="EAGLE")
    with pytest.raises(ValueError, match="SGLang's own"):
        parse(checkpoint("qwen2_5_vl"), **STAR)


def test_embeddings_of_screenshots_get_a_size_on_a_gpu(
    checkpoint: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from star_kv_sglang import server_args

    monkeypatch.delenv("SGLANG_VLM_CACHE_SIZE_MB", raising=False)
    record = parse(checkpoint("qwen2_5_vl"), **STAR, max_running_requests=8)
    has_size = "SGLANG_VLM_CACHE_SIZE_MB" in os.environ
    assert has_size is cpu_mode.is_gpu_present(), "a CPU keeps SGLang's size"
    monkeypatch.setattr(server_args.compat, "gpu_is_present", lambda: True)
    monkeypatch.setattr(server_args, "get_device_memory_capacity", lambda device: 81_559.0)
    assert server_args.embedding_cache_of(record) == 100, "SGLang's own size at least: the model is small"
    monkeypatch.setattr(server_args, "embedding_cache_of", lambda record: 318)
    parse(checkpoint("qwen2_5_vl"), **STAR)
    assert os.environ["SGLANG_VLM_CACHE_SIZE_MB"] == "318"
    parse(checkpoint("qwen2_5_vl"))
    assert "SGLANG_VLM_CACHE_SIZE_MB" not in os.environ, "stock in the same process has its own size"


def test_what_sglang_chooses_for_one_engine_does_not_bind_the_next(
    checkpoint: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """For Qwen3-VL on a large Hopper GPU SGLang keeps no embeddings, which it writes into the environment."""
    from star_kv_sglang import server_args

    monkeypatch.delenv("SGLANG_VLM_CACHE_SIZE_MB", raising=False)
    parent = server_args.StarServerArgs.__base__
    whole = parent.resolve_once

    def keeps_none(record: Any) -> None:
        whole(record)
        monkeypatch.setenv("SGLANG_VLM_CACHE_SIZE_MB", "0")

    monkeypatch.setattr(parent, "resolve_once", keeps_none)
    monkeypatch.setattr(server_args, "embedding_cache_of", lambda record: 318)
    parse(checkpoint("qwen2_5_vl"), **STAR, kv_image_cache_mb=0)
    assert os.environ["SGLANG_VLM_CACHE_SIZE_MB"] == "0"
    monkeypatch.setattr(parent, "resolve_once", whole)
    parse(checkpoint("qwen2_5_vl"), **STAR)
    assert os.environ["SGLANG_VLM_CACHE_SIZE_MB"] == "318"
    parse(checkpoint("qwen2_5_vl"))
    assert "SGLANG_VLM_CACHE_SIZE_MB" not in os.environ


def test_a_cpu_without_the_cpu_engine_is_told_how_to_turn_it_on(
    checkpoint: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("star_kv_sglang.compat.gpu_is_present", lambda: False)
    monkeypatch.delenv("SGLANG_USE_CPU_ENGINE", raising=False)
    with pytest.raises(UnsupportedSetupError) as caught:
        parse(checkpoint("qwen2_5_vl"), **STAR)
    (reason,) = caught.value.reasons
    assert all(part in reason for part in ("`star-kv serve`", "cpu_mode.enable()", "cpu_engine_kwargs"))


@pytest.mark.parametrize(
    ("flags", "part"),
    [
        pytest.param({"enable_deterministic_inference": True}, "--enable-deterministic-inference", id="deterministic"),
        pytest.param({"radix_eviction_policy": "tlru"}, "--radix-eviction-policy tlru", id="tlru"),
        pytest.param({"enable_session_radix_cache": True}, "--enable-session-radix-cache", id="session_radix_cache"),
        pytest.param({"enable_kv_cache_sharding": True}, "--enable-kv-cache-sharding", id="kv_sharding"),
        pytest.param(
            {"enable_unified_cache_external_linker": True}, "--enable-unified-cache-external-linker", id="linker"
        ),
        pytest.param({"mm_feature_transport": "cuda_vmm"}, "--mm-feature-transport cuda_vmm", id="cuda_vmm"),
        pytest.param({"is_embedding": True}, "--is-embedding", id="embedding"),
        pytest.param({"enable_mis": True}, "--enable-mis", id="multi_item_scoring"),
        pytest.param({"kv_canary": "log"}, "--kv-canary", id="kv_canary"),
        pytest.param({"encoder_only": True}, "--encoder-only", id="encoder_only"),
        pytest.param({"enable_unified_memory": True}, "--enable-unified-memory", id="unified_memory"),
        pytest.param({"dllm_algorithm": "LowConfidence"}, "--dllm-algorithm", id="diffusion_language_model"),
        pytest.param({"prefill_only_disable_kv_cache": True}, "--prefill-only-disable-kv-cache", id="no_kv_cache"),
        pytest.param({"enable_pdmux": True}, "--enable-pdmux", id="pd_multiplexing"),
    ],
)
def test_what_cannot_be_right_is_refused(checkpoint: Callable[[str], Path], flags: dict[str, Any], part: str) -> None:
    with pytest.raises(UnsupportedSetupError) as caught:
        parse(checkpoint("qwen2_5_vl"), **STAR, **flags)
    assert len(caught.value.reasons) == 1
    assert part in caught.value.reasons[0]


def test_what_sglang_itself_sets_is_refused_too(
    checkpoint: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody asked for deterministic inference: SGLang's own resolution turns it on, and leaves words of it behind."""
    monkeypatch.setenv("SGLANG_VLM_CACHE_SIZE_MB", "100")
    monkeypatch.setenv("SGLANG_ENABLE_DETERMINISTIC_INFERENCE", "0")
    with pytest.raises(UnsupportedSetupError, match="--enable-deterministic-inference"):
        parse(checkpoint("qwen2_5_vl"), **STAR, rl_on_policy_target="fsdp", attention_backend="flashinfer")


def test_unknown_model_is_refused_with_the_list_of_known_ones(
    checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(checkpoint("llama"), folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "architectures": ["StableLmForCausalLM"]}))
    with pytest.raises(UnsupportedSetupError, match=r"StableLmForCausalLM.*Qwen2_5_VLForConditionalGeneration"):
        parse(folder, **STAR)


@pytest.mark.parametrize("backend", ["breakable", "full"])
def test_prefill_graphs_are_refused_with_vision(checkpoint: Callable[[str], Path], backend: str) -> None:
    graphs = {"attention_backend": "flashinfer", "cuda_graph_backend_prefill": backend}
    with pytest.raises(
        UnsupportedSetupError, match=rf"prefill CUDA graphs \({backend}\).*--cuda-graph-backend-prefill"
    ):
        parse(checkpoint("qwen2_5_vl"), **STAR, **graphs)
    assert parse(checkpoint("qwen2_5_vl"), **graphs).kv_policy == "full"


def test_prefill_graphs_that_a_gpu_has_by_default_are_gone_before_the_check(
    checkpoint: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from sglang.srt.arg_groups.overrides import resolving_view
    from sglang.srt.model_executor import cuda_graph_config

    monkeypatch.setattr(cuda_graph_config, "default_prefill_backend", lambda: "breakable")
    accepted = parse(checkpoint("qwen2_5_vl"), exact=False, **STAR, attention_backend="flashinfer")
    assert resolving_view(accepted).cuda_graph_config.prefill.backend == "disabled"
    text = parse(checkpoint("llama"), exact=False, **STAR, attention_backend="flashinfer")
    assert resolving_view(text).cuda_graph_config.prefill.backend == "breakable"


def test_file_of_parameters_is_read(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    file = tmp_path / "policy.json"
    file.write_text('{"boost_alpha": 1.5, "frame_floor": 0.1}')
    config = parse(checkpoint("qwen2_5_vl"), **STAR, kv_policy_config=str(file)).policy_config()
    assert (config.params.scorer.boost_alpha, config.frame_floor, config.budget) == (1.5, 0.1, 0.2)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "last"),
    [
        (["--kv-budget", "1.5"], "error: --kv-budget 1.5 must be a number in (0, 1]"),
        (["--kv-token-budget", "x"], "error: argument --kv-token-budget: invalid int value: 'x'"),
        (
            ["--enable-lmcache", "--tp-size", "2"],
            "Change these options, or start with --kv-policy full (stock SGLang).",
        ),
    ],
    ids=["value", "no number", "set-up"],
)
def test_server_stops_before_it_loads_weights(checkpoint: Callable[[str], Path], flags: list[str], last: str) -> None:
    """And the last line says why, without a traceback."""
    words = ["--model-path", str(checkpoint("qwen2_5_vl")), "--kv-policy", "star", *flags, "--port", "31201"]
    argv, environment = server_command(words)
    result = subprocess.run(
        [sys.executable, "-c", "import sys; from sglang.cli.main import main; sys.argv[0] = 'sglang'; main()", *argv],
        env=environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert result.returncode != 0
    output = result.stdout + result.stderr
    assert "Traceback" not in output
    assert last in result.stderr.splitlines()[-1]
    assert "Load weight" not in output
    assert "Loading" not in output
