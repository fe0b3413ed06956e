"""`star-kv doctor`: is this machine able to serve with a KV policy, and if not, why?"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Final

from packaging.requirements import Requirement

from star_kv_sglang import __version__, compat, cpu_mode
from star_kv_sglang.cpu_mode import CpuModeError

PLUGIN_GROUP: Final = "sglang.srt.plugins"
PLUGIN_NAME: Final = "star_kv"
# What SGLang pins exactly and the policy's kernels and attention run on.
_PINNED: Final = ("torch", "transformers", "flashinfer-python")


@dataclass(frozen=True)
class Check:
    """One line of the report.

    Attributes:
        name: what was looked at.
        ok: whether it is as it must be.
        detail: what was found and, when it is wrong, what to do.
    """

    name: str
    ok: bool
    detail: str


def check_python() -> Check:
    """Python 3.11 or newer."""
    version = platform.python_version()
    return Check("Python", sys.version_info >= (3, 11), f"{version} at {sys.executable}")


def check_sglang() -> Check:
    """SGLang is one of the supported versions."""
    supported = ", ".join(compat.SUPPORTED_SGLANG)
    try:
        version = metadata.version("sglang")
    except metadata.PackageNotFoundError:
        return Check("SGLang", False, f"not installed; supported: {supported}. Run make install")
    ok = version in compat.SUPPORTED_SGLANG
    return Check("SGLang", ok, version if ok else f"{version}; supported: {supported}. pip install sglang=={supported}")


def check_pins() -> Check:
    """The libraries that SGLang pins have the pinned versions: others load, and fail later or compute wrongly."""
    try:
        requirements = metadata.requires("sglang") or ()
    except metadata.PackageNotFoundError:
        return Check("Libraries", False, "SGLang, which pins them, is not installed")
    wanted: dict[str, str] = {}
    for text in requirements:
        requirement = Requirement(text)
        name = requirement.name.replace("_", "-").lower()
        if name in _PINNED and (requirement.marker is None or requirement.marker.evaluate({"extra": ""})):
            wanted[name] = str(requirement.specifier)
    found = {name: _version(name) for name in (*_PINNED, "triton")}
    wrong = [
        f"{name} {found[name] or 'is not installed'} (SGLang needs {pin})"
        for name, pin in wanted.items()
        if not Requirement(name + pin).specifier.contains(found[name] or "0", prereleases=True)
    ]
    return Check("Libraries", not wrong, "; ".join(wrong) or ", ".join(f"{name} {found[name]}" for name in found))


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def check_plugin() -> Check:
    """SGLang finds our entry point and is not told to leave it out."""
    entries = metadata.entry_points(group=PLUGIN_GROUP)
    others = sorted(entry.name for entry in entries if entry.name != PLUGIN_NAME)
    beside = f"; other plugins: {', '.join(others)}" if others else ""
    if PLUGIN_NAME not in entries.names:
        return Check("Plugin", False, f"no entry point {PLUGIN_NAME!r} in {PLUGIN_GROUP}: install this package{beside}")
    allowed = os.environ.get("SGLANG_PLUGINS", "")
    if allowed and PLUGIN_NAME not in [name.strip() for name in allowed.split(",")]:
        return Check("Plugin", False, f"SGLANG_PLUGINS={allowed} leaves {PLUGIN_NAME} out: add it, or unset it")
    return Check("Plugin", True, f"{PLUGIN_NAME} {__version__}{beside}")


def check_device() -> Check:
    """A GPU that works, or CPU mode. Switches CPU mode on, for the checks that import SGLang afterwards."""
    try:
        gpu = cpu_mode.is_gpu_present()
        if not gpu:
            cpu_mode.enable()
    except CpuModeError as error:
        return Check("Device", False, str(error))
    if not gpu:
        return Check("Device", True, "no GPU: star-kv serve runs in CPU mode, on torch_native attention")
    import torch

    if not torch.cuda.is_available():
        return Check(
            "Device",
            False,
            "the CUDA driver lists a GPU, but torch cannot use it: compare nvidia-smi with torch.version.cuda",
        )
    return Check("Device", True, f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}")


def check_seams() -> Check:
    """Every place of SGLang that the policy extends exists and has the expected signature."""
    problems = compat.sglang_problems()
    return Check("Hooks", not problems, "\n".join(problems) or "every place that the policy extends is as expected")


# Later checks may import SGLang: the device is settled before.
CHECKS: Final[tuple[Callable[[], Check], ...]] = (
    check_python,
    check_sglang,
    check_pins,
    check_plugin,
    check_device,
    check_seams,
)


def compare(folder: Path) -> int:
    """Print each place that the policy extends or reads and that the SGLang in a folder does not have as expected."""
    from star_kv_sglang.patches.contract import SourceTree

    problems = compat.seam_problems(folder)
    version = SourceTree({"sglang": folder}).version("sglang")
    supported = ", ".join(compat.SUPPORTED_SGLANG)
    sys.stdout.write(f"SGLang {version} in {folder}: {len(problems)} differences from {supported}\n")
    for problem in problems:
        sys.stdout.write(f"  - {problem}\n")
    return 1 if problems else 0


def run(argv: Sequence[str]) -> int:
    """Print a line for each check. Exit status 1: something is wrong."""
    parser = argparse.ArgumentParser(
        "star-kv doctor",
        description="Check Python, SGLang, its libraries, the plugin, the device and the hooks. Exit status 1: "
        "something is wrong.",
    )
    parser.add_argument(
        "--sglang",
        type=Path,
        metavar="FOLDER",
        help="compare another SGLang instead: the folder of its package, such as an unpacked wheel's sglang/. Its "
        "source is read and nothing of it is imported",
    )
    folder: Path | None = parser.parse_args(argv).sglang
    if folder is not None:
        if not (folder / "srt").is_dir():
            parser.error(f"{folder} has no folder srt: name SGLang's package, such as site-packages/sglang")
        return compare(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        checks = [check() for check in CHECKS]
    for check in checks:
        detail = check.detail.replace("\n", "\n" + " " * 18)
        sys.stdout.write(f"{'ok' if check.ok else 'wrong':<7}{check.name:<11}{detail}\n")
    return 0 if all(check.ok for check in checks) else 1
