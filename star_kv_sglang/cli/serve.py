"""`star-kv serve`: become SGLang's server, in CPU mode on a machine without a GPU."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from star_kv_sglang import cpu_mode
from star_kv_sglang.cpu_mode import CpuModeError
from star_kv_sglang.cpu_mode.arguments import missing_cpu_arguments, requested_device

# `sglang serve` by its module: the script of that name is missing where SGLang is only on PYTHONPATH.
_SGLANG = "import sys; from sglang.cli.main import main; sys.argv[0] = 'sglang'; sys.exit(main())"


@dataclass(frozen=True)
class Launch:
    """The process that `star-kv serve` becomes.

    Attributes:
        argv: command, its first word the Python that runs now.
        environment: all of its environment variables.
        note: one line for the user, or None.
    """

    argv: list[str]
    environment: dict[str, str]
    note: str | None


def plan(argv: Sequence[str], environment: Mapping[str, str], *, gpu: bool) -> Launch:
    """Command and environment of SGLang's server for the words after `star-kv serve`.

    Raises:
        CpuModeError: the words ask for the CPU on a GPU machine, or for a GPU where there is none.
    """
    if gpu:
        if requested_device(argv) == "cpu":
            raise CpuModeError(
                "--device cpu was asked for on a machine with a GPU, where star-kv's CPU mode is never used. Leave "
                "--device out, or hide the GPU with CUDA_VISIBLE_DEVICES=''."
            )
        return Launch([sys.executable, "-c", _SGLANG, "serve", *argv], dict(environment), None)
    return Launch(
        [sys.executable, "-c", _SGLANG, "serve", *cpu_mode.with_cpu_arguments(argv)],
        cpu_mode.cpu_environment(environment),
        " ".join(["No GPU found: CPU mode is on.", *missing_cpu_arguments(argv)]),
    )


def run(argv: Sequence[str]) -> int:
    """Become SGLang's server with these flags; `star-kv serve --help` shows SGLang's own help."""
    launch = plan(argv, os.environ, gpu=cpu_mode.is_gpu_present())
    if launch.note is not None:
        sys.stderr.write(f"{launch.note}\n")
        sys.stderr.flush()
    os.execve(launch.argv[0], launch.argv, launch.environment)
