"""What an engine needs on this machine: SGLang's CPU engine, or one of two kinds of engine on a GPU."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from star_kv_sglang import cpu_mode
from tests.engine.plugin import sglang_plugin

_GPU: dict[str, Any] = {
    "sampling_backend": "pytorch",
    "grammar_backend": "none",
    "mm_feature_transport": "cpu",
    # The pool has a fixed size; the share only has to leave room for engines that other tests run beside this one.
    "mem_fraction_static": 0.4,
}
_SERVING: dict[str, Any] = {
    "dtype": "bfloat16",
    "attention_backend": "flashinfer",
    "mm_attention_backend": "triton_attn",
    "cuda_graph_bs_decode": [1, 2, 4, 8],
}
_EXACT: dict[str, Any] = {
    "dtype": "float32",
    "attention_backend": "torch_native",
    "mm_attention_backend": "sdpa",
    "disable_cuda_graph": True,
}
_EXACT_ENVIRONMENT = {"NVIDIA_TF32_OVERRIDE": "0", "TORCHDYNAMO_DISABLE": "1"}


def engine_arguments(*, exact: bool = False, **given: Any) -> dict[str, Any]:
    """Arguments of ``sglang.Engine`` on this machine; those in ``given`` win.

    Args:
        exact: Compute in float32 with PyTorch's operators; nothing else runs on the CPU.
        given: Any arguments.
    """
    if not cpu_mode.is_gpu_present():
        return cpu_mode.cpu_engine_kwargs(**{"dtype": "float32", **given})
    return {**_GPU, **(_EXACT if exact else _SERVING), **given}


def server_flags() -> list[str]:
    """Flags with which ``star-kv serve`` is the engine that serves on this machine; on a CPU it finds its own."""
    if not cpu_mode.is_gpu_present():
        return []
    words = []
    for name, value in {**_GPU, **_SERVING}.items():
        words += [f"--{name.replace('_', '-')}", *map(str, value if isinstance(value, list) else [value])]
    return words


def server_command(words: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Command line of ``sglang serve`` on this machine without the program's name, and its environment."""
    if cpu_mode.is_gpu_present():
        return ["serve", *words], dict(os.environ)
    return ["serve", *cpu_mode.with_cpu_arguments(words)], cpu_mode.cpu_environment(os.environ)


def process_environment() -> dict[str, str]:
    """Environment of a process that imports SGLang on this machine."""
    return dict(os.environ) if cpu_mode.is_gpu_present() else cpu_mode.cpu_environment(os.environ)


@contextmanager
def environment(values: Mapping[str, str]) -> Iterator[None]:
    """Environment variables for the processes that are started inside of the block."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def exact_environment(exact: bool) -> Iterator[None]:
    """Let the processes that are started inside of the block compute in true float32, where a GPU would not.

    SGLang's GPU kernels for norms and activations take half precision only. Its spawned processes find
    ``native_ops`` as one more plugin, by way of the import path that they inherit.
    """
    if not exact or not cpu_mode.is_gpu_present():
        yield
        return
    with environment(_EXACT_ENVIRONMENT), sglang_plugin("tests.engine.native_ops"):
        yield
