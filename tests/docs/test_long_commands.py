"""Commands of the documentation that take long, made short by the arguments that their marks name."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from star_kv_sglang import cpu_mode
from tests.architecture.imports import ROOT
from tests.docs.scripts import script

docs_commands = script("docs_commands")
LONG = [block for block in docs_commands.all_blocks() if block.kind == "nightly"]

pytestmark = [
    pytest.mark.nightly,
    pytest.mark.skipif(cpu_mode.is_gpu_present(), reason="CPU mode is never used on a GPU machine"),
]


def shortened(block: Any) -> str:
    """The block with the arguments of its mark behind its last command."""
    text: str = block.text.rstrip()
    command, hash_sign, comment = text.rpartition("  #") if "\n" not in text and "  #" in text else (text, "", "")
    del hash_sign, comment
    return f"{command} {block.rest}"


@pytest.mark.parametrize("block", LONG, ids=[block.place for block in LONG])
def test_it_runs(block: Any, tmp_path: Path) -> None:
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    program = [sys.executable] if block.language == "python" else ["bash", "-euo", "pipefail"]
    file = tmp_path / "commands"
    file.write_text(block.text if block.language == "python" else shortened(block), encoding="utf-8")
    done = subprocess.run(
        [*program, str(file)], cwd=ROOT, env=environment, text=True, timeout=580,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:]
