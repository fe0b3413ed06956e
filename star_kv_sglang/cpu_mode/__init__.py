"""CPU mode: SGLang on a machine without a GPU, with a stand-in for its compiled kernels; never used beside a GPU."""

from __future__ import annotations

from star_kv_sglang.cpu_mode.activation import cpu_environment, enable, is_enabled
from star_kv_sglang.cpu_mode.arguments import (
    cpu_engine_kwargs,
    given_flags,
    missing_cpu_arguments,
    with_cpu_arguments,
    with_flags,
)
from star_kv_sglang.cpu_mode.errors import CpuModeError
from star_kv_sglang.cpu_mode.machine import is_gpu_present
from star_kv_sglang.cpu_mode.quiet import leave_out_log_lines

__all__ = [
    "CpuModeError",
    "cpu_engine_kwargs",
    "cpu_environment",
    "enable",
    "given_flags",
    "is_enabled",
    "is_gpu_present",
    "leave_out_log_lines",
    "missing_cpu_arguments",
    "with_cpu_arguments",
    "with_flags",
]
