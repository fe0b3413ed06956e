"""A newcomer's path: a fresh checkout, and every command of README and docs/ that a CPU can run, as it stands."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from star_kv_sglang import cpu_mode
from tests.architecture.imports import ROOT

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(cpu_mode.is_gpu_present(), reason="CPU mode is never used on a GPU machine"),
]


def test_every_command_works(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONSAFEPATH")}
    done = subprocess.run(
        [sys.executable, "scripts/newcomer.py", "--venv", sys.prefix, "--folder", str(tmp_path / "star-kv-sglang")],
        cwd=ROOT, env=environment, text=True, capture_output=True, timeout=580,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "FAILED" not in done.stdout
