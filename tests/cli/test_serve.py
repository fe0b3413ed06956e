"""`star-kv serve`: which process it becomes."""

from __future__ import annotations

import subprocess
import sys

import pytest

from star_kv_sglang import cpu_mode
from star_kv_sglang.cli.serve import plan
from star_kv_sglang.cpu_mode.activation import STAND_IN_DIR

USER = ["--model-path", "m", "--kv-policy", "star", "--kv-budget", "0.2", "--port", "31000"]


def test_on_a_gpu_machine_it_is_sglang_serve_and_nothing_else() -> None:
    environment = {"HOME": "/h", "PYTHONPATH": "/a"}
    launch = plan(USER, environment, gpu=True)
    assert launch.argv[0] == sys.executable
    assert launch.argv[3:] == ["serve", *USER]
    assert launch.environment == environment
    assert launch.note is None


def test_without_a_gpu_it_is_sglang_serve_in_cpu_mode_and_says_so() -> None:
    launch = plan(USER, {"HOME": "/h"}, gpu=False)
    assert launch.argv[3:] == ["serve", *cpu_mode.with_cpu_arguments(USER)]
    assert launch.environment["PYTHONPATH"] == str(STAND_IN_DIR)
    assert launch.environment["SGLANG_USE_CPU_ENGINE"] == "1"
    assert launch.note == (
        "No GPU found: CPU mode is on. --device cpu --attention-backend torch_native --sampling-backend pytorch "
        "--mm-attention-backend sdpa"
    )


def test_the_note_names_only_what_was_added() -> None:
    launch = plan([*USER, "--device", "cpu", "--attention-backend=triton"], {}, gpu=False)
    assert launch.note == "No GPU found: CPU mode is on. --sampling-backend pytorch --mm-attention-backend sdpa"


def test_the_cpu_is_refused_on_a_gpu_machine() -> None:
    with pytest.raises(cpu_mode.CpuModeError, match="on a machine with a GPU"):
        plan([*USER, "--device", "cpu"], {}, gpu=True)


def test_a_gpu_is_refused_where_there_is_none() -> None:
    with pytest.raises(cpu_mode.CpuModeError, match="lists no GPU"):
        plan([*USER, "--device=cuda"], {}, gpu=False)


def test_words_reach_sglang_in_their_order_and_unread() -> None:
    """The command sees the words first: unknown flags, values that look like flags and --help must pass through it."""
    program = (
        "import os, sys\n"
        "os.execve = lambda path, argv, environment: print(*argv[3:], sep='|')\n"
        "from star_kv_sglang import cpu_mode\n"
        "cpu_mode.is_gpu_present = lambda: True\n"
        "from star_kv_sglang.cli.main import main\n"
        "main()\n"
    )
    words = ["serve", "m", "--kv-policy-config", '{"a": -1}', "-x", "--help", "--port=1", "--log-level", "info", "-1"]
    answer = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "|".join(words)
