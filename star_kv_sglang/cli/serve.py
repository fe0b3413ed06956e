"""`star-kv serve`: become SGLang's server, in CPU mode on a machine without a GPU."""

from __future__ import annotations

import importlib.util
import os
import sys
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from star_kv_sglang import compat, cpu_mode
from star_kv_sglang.cli import banner
from star_kv_sglang.cpu_mode import CpuModeError
from star_kv_sglang.cpu_mode.template import SINGLE_THREADED
from star_kv_sglang.errors import StarKVError
from star_kv_sglang.flags import FLAGS, config_of
from star_kv_sglang.patches import cpu_server

# `sglang serve` by its module: the script of that name is missing where SGLang is only on PYTHONPATH.
_SGLANG = "import sys; from sglang.cli.main import main; sys.argv[0] = 'sglang'; sys.exit(main())"
# Answers say how many of a prompt's tokens were found in the cache; it costs the server nothing.
_CACHE_REPORT: Final = "enable_cache_report"
_HELP_HEAD: Final = """\
usage: star-kv serve MODEL [flags]
       star-kv serve --model-path MODEL [flags]

Start SGLang's server; on a machine without a GPU in CPU mode, which is said.
"""
_HELP_TAIL: Final = """
Every flag of `sglang serve` works here too: `sglang serve --help` lists them. With --model-path, --port and
--max-total-tokens most servers are described. --enable-cache-report is added, so that answers say what the cache held.

example:
  star-kv serve --model-path Qwen/Qwen2.5-VL-7B-Instruct --kv-policy star --kv-budget 0.2
"""


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
    given = cpu_mode.given_flags(argv)
    added = [] if _CACHE_REPORT in given else ["--" + _CACHE_REPORT.replace("_", "-")]
    if gpu:
        if given.get("device") == "cpu":
            raise CpuModeError(
                "--device cpu was asked for on a machine with a GPU, where star-kv's CPU mode is never used. Leave "
                "--device out, or hide the GPU with CUDA_VISIBLE_DEVICES=''."
            )
        return Launch(_command(_SGLANG, cpu_mode.with_flags(argv, added)), dict(environment), None)
    for_cpu = cpu_mode.missing_cpu_arguments(argv)
    # The event loop of a worker that answers clients does not survive a fork.
    forks = given.get("tokenizer_worker_num", "1") == "1"
    return Launch(
        _command(
            cpu_server.PROGRAM if forks else _SGLANG,
            cpu_mode.with_cpu_arguments(cpu_mode.with_flags(argv, added)),
        ),
        {**cpu_mode.cpu_environment(environment), **(SINGLE_THREADED if forks else {})},
        " ".join(["No GPU found: CPU mode is on.", *for_cpu]),
    )


def _command(program: str, argv: Sequence[str]) -> list[str]:
    return [sys.executable, "-c", program, "serve", *argv]


def help_text() -> str:
    """What `star-kv serve --help` prints."""
    # All of them on the first screen, whatever there is to say of each.
    names = textwrap.wrap(", ".join(f"{flag.option} {flag.metavar}" for flag in FLAGS), 76, break_on_hyphens=False)
    rows = ["", "flags of the policy:", *(f"  {line}" for line in names), ""]
    for flag in FLAGS:
        lines = textwrap.wrap(flag.help, 76)
        rows += [f"  {flag.option} {flag.metavar}", *(f"      {line}" for line in lines)]
    return _HELP_HEAD + "\n".join(rows) + "\n" + _HELP_TAIL


def run(argv: Sequence[str]) -> int:
    """Check our flags, then become SGLang's server.

    Raises:
        ConfigError: one of our flags has a wrong value.
        StarKVError: SGLang is not installed.
        CpuModeError: the device that was asked for is not there.
    """
    if "-h" in argv or "--help" in argv:
        sys.stdout.write(help_text())
        return 0
    given = cpu_mode.given_flags(argv)
    config = config_of(given)
    if importlib.util.find_spec("sglang") is None:
        raise StarKVError(f"SGLang is not installed: pip install sglang=={compat.SUPPORTED_SGLANG[-1]}")
    launch = plan(argv, os.environ, gpu=cpu_mode.is_gpu_present())
    if launch.note is not None:
        sys.stderr.write(f"{launch.note}\n")
        sys.stderr.flush()
    banner.start(os.getpid(), given, config, launch.environment)
    os.execve(launch.argv[0], launch.argv, launch.environment)
