"""Names and versions of the machine that measures."""

from __future__ import annotations

import datetime
import os
import platform
import re
import subprocess
from importlib.metadata import version

from star_kv_sglang import __version__
from star_kv_sglang.cpu_mode import is_gpu_present
from star_kv_sglang.tools.bench.serve.results import Machine


def describe(model: str) -> Machine:
    """The machine as it is now."""
    gpu, memory, driver = _gpu() if is_gpu_present() else (f"cpu {platform.machine()}", 0.0, "")
    return Machine(
        date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        gpu=gpu,
        gpu_memory_gib=memory,
        driver=driver,
        torch=version("torch"),
        sglang=version("sglang"),
        star_kv=__version__,
        model=model,
    )


def short_name(gpu: str) -> str:
    """A GPU's name as part of a file name: ``NVIDIA H100 80GB HBM3`` becomes ``h100-80gb-hbm3``."""
    return re.sub(r"[^a-z0-9]+", "-", gpu.lower().removeprefix("nvidia ")).strip("-")


def first_gpu() -> str:
    """Index or UUID of the GPU that this process and its servers see first, as the driver counts them."""
    return os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0].strip() or "0"


def gpu_used_gib() -> float | None:
    """Memory in use on the first GPU, of all processes; None without a GPU."""
    return float(_query("memory.used")) / 1024 if is_gpu_present() else None


def _gpu() -> tuple[str, float, str]:
    name, memory, driver = _query("name,memory.total,driver_version").split(", ")
    return name, float(memory) / 1024, driver


def _query(what: str) -> str:
    command = ["nvidia-smi", "-i", first_gpu(), f"--query-gpu={what}", "--format=csv,noheader,nounits"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
