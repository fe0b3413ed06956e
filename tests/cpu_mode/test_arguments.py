"""The CPU's defaults are added where the user did not choose, and nowhere else."""

from __future__ import annotations

from pathlib import Path

import pytest

from star_kv_sglang.cpu_mode import CpuModeError, cpu_engine_kwargs, with_cpu_arguments

DEVICE = ["--device", "cpu"]
ATTENTION = ["--attention-backend", "torch_native"]
SAMPLING = ["--sampling-backend", "pytorch"]
VISION = ["--mm-attention-backend", "sdpa"]
POOL = ["--max-total-tokens", "32768"]


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        pytest.param([], [*DEVICE, *ATTENTION, *SAMPLING, *VISION, *POOL], id="nothing given"),
        pytest.param(
            ["--model-path", "m"],
            [*DEVICE, *ATTENTION, *SAMPLING, *VISION, *POOL, "--model-path", "m"],
            id="model by flag",
        ),
        pytest.param(["m"], ["m", *DEVICE, *ATTENTION, *SAMPLING, *VISION, *POOL], id="model as first word"),
        pytest.param(
            ["m", "--attention-backend", "triton"],
            ["m", *DEVICE, *SAMPLING, *VISION, *POOL, "--attention-backend", "triton"],
            id="attention given",
        ),
        pytest.param(
            ["--mm-attention-backend=triton_attn", "--device=cpu"],
            [*ATTENTION, *SAMPLING, *POOL, "--mm-attention-backend=triton_attn", "--device=cpu"],
            id="with equals signs",
        ),
        pytest.param(
            ["--attention_backend", "triton"],
            [*DEVICE, *SAMPLING, *VISION, *POOL, "--attention_backend", "triton"],
            id="with underscores",
        ),
    ],
)
def test_only_what_is_missing_is_added(argv: list[str], expected: list[str]) -> None:
    assert with_cpu_arguments(argv) == expected


def test_flags_of_a_configuration_file_count_as_given(tmp_path: Path) -> None:
    config = tmp_path / "server.yaml"
    config.write_text("attention-backend: triton\ndevice: cpu\n")
    argv = ["--config", str(config)]
    assert with_cpu_arguments(argv) == [*SAMPLING, *VISION, *POOL, *argv]


@pytest.mark.parametrize("text", ["- a\n- list\n", "a: [unclosed\n", ""], ids=["list", "malformed", "empty"])
def test_a_strange_configuration_file_is_left_to_sglang(tmp_path: Path, text: str) -> None:
    config = tmp_path / "server.yaml"
    config.write_text(text)
    argv = [f"--config={config}"]
    assert with_cpu_arguments(argv) == [*DEVICE, *ATTENTION, *SAMPLING, *VISION, *POOL, *argv]


def test_another_device_is_refused(tmp_path: Path) -> None:
    config = tmp_path / "server.yaml"
    config.write_text("device: cuda\n")
    for argv in (["--device", "cuda"], ["--device=cuda"], ["--config", str(config)]):
        with pytest.raises(CpuModeError, match="--device cuda was asked for"):
            with_cpu_arguments(argv)
    with pytest.raises(CpuModeError, match="--device cuda was asked for"):
        cpu_engine_kwargs(device="cuda")


def test_engine_keywords_win_over_the_defaults() -> None:
    kwargs = cpu_engine_kwargs(model_path="m", attention_backend="triton")
    assert kwargs == {
        "device": "cpu",
        "attention_backend": "triton",
        "sampling_backend": "pytorch",
        "mm_attention_backend": "sdpa",
        "max_total_tokens": 32768,
        "model_path": "m",
    }


@pytest.mark.parametrize(
    "argv", [["--max-total-tokens", "5000"], ["--mem-fraction-static=0.4"]], ids=["in tokens", "as a share"]
)
def test_a_pool_that_somebody_sized_keeps_its_size(argv: list[str]) -> None:
    assert with_cpu_arguments(argv) == [*DEVICE, *ATTENTION, *SAMPLING, *VISION, *argv]


def test_an_engine_whose_pool_was_sized_keeps_its_size() -> None:
    assert cpu_engine_kwargs(max_total_tokens=5000)["max_total_tokens"] == 5000
    assert "max_total_tokens" not in cpu_engine_kwargs(mem_fraction_static=0.4)
    assert cpu_engine_kwargs(mem_fraction_static=None)["max_total_tokens"] == 32768
