"""Switching CPU mode on: for this process and its children, or for the environment of a new process."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from star_kv_sglang.cpu_mode.errors import CpuModeError
from star_kv_sglang.cpu_mode.machine import is_gpu_present
from star_kv_sglang.cpu_mode.quiet import with_quiet_warnings

STAND_IN_DIR: Final = Path(__file__).resolve().parent / "stand_in"

_ENGINE_SWITCH: Final = "SGLANG_USE_CPU_ENGINE"
# torch.compile takes 20 s in front of the first image and gains nothing at the sizes a CPU serves.
_NO_COMPILE: Final = "TORCHDYNAMO_DISABLE"
_WARNINGS: Final = "PYTHONWARNINGS"


def cpu_environment(base: Mapping[str, str]) -> dict[str, str]:
    """`base` with what SGLang and the processes it spawns need on the CPU; the stand-in comes first in PYTHONPATH."""
    paths = [path for path in base.get("PYTHONPATH", "").split(os.pathsep) if path and path != str(STAND_IN_DIR)]
    return {
        **base,
        _ENGINE_SWITCH: "1",
        _NO_COMPILE: base.get(_NO_COMPILE, "1"),
        _WARNINGS: with_quiet_warnings(base.get(_WARNINGS, "")),
        "PYTHONPATH": os.pathsep.join([str(STAND_IN_DIR), *paths]),
    }


def is_enabled() -> bool:
    """Whether CPU mode is on in this process."""
    return os.environ.get(_ENGINE_SWITCH) == "1" and str(STAND_IN_DIR) in sys.path


def enable() -> None:
    """Switch CPU mode on in this process and for every process it starts. Call it before SGLang is imported.

    Calling it again does nothing. `star-kv serve` does the same for a server; this is for `sglang.Engine` in a program:

        from star_kv_sglang import cpu_mode
        cpu_mode.enable()
        import sglang
        engine = sglang.Engine(**cpu_mode.cpu_engine_kwargs(model_path=...))

    Raises:
        CpuModeError: there is a GPU, or SGLang or `sgl_kernel` was imported before.
    """
    if is_gpu_present():
        raise CpuModeError("CPU mode is for machines without a GPU and this one has one; use SGLang as it is.")
    if is_enabled():
        return
    too_early = [name for name in ("sgl_kernel", "sglang.srt.utils.common") if name in sys.modules]
    if too_early:
        raise CpuModeError(
            f"{' and '.join(too_early)} was imported before cpu_mode.enable(); SGLang looks for its device while it is "
            "imported. Call enable() first."
        )
    os.environ.update(cpu_environment(os.environ))
    sys.path.insert(0, str(STAND_IN_DIR))
