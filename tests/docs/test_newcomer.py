"""A newcomer's path: a fresh checkout, and the commands of README and docs/ that need a server, as they stand."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from star_kv_sglang import cpu_mode
from tests.architecture.imports import ROOT

LIMIT_S = 500

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(cpu_mode.is_gpu_present(), reason="CPU mode is never used on a GPU machine"),
]


def test_every_command_works(tmp_path: Path) -> None:
    # A newcomer's shell knows nothing of what these tests have set for themselves.
    ours = {*cpu_mode.cpu_environment({}), "PYTHONSAFEPATH"}
    environment = {name: value for name, value in os.environ.items() if name not in ours}
    walk = subprocess.Popen(
        [sys.executable, "scripts/newcomer.py", "--venv", sys.prefix, "--folder", str(tmp_path / "star-kv-sglang")],
        cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    try:
        said = walk.communicate(timeout=LIMIT_S)[0]
    finally:
        walk.terminate()
        walk.wait(60)
    assert walk.returncode == 0, said
    assert "FAILED" not in said
