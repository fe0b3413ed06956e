"""Switching CPU mode on: what it changes, and when it refuses."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from star_kv_sglang import cpu_mode
from star_kv_sglang.cpu_mode import activation
from star_kv_sglang.cpu_mode.quiet import with_quiet_warnings


def test_the_environment_of_a_server_has_the_stand_in_first_and_once() -> None:
    once = cpu_mode.cpu_environment({"PYTHONPATH": os.pathsep.join(["/a", "/b"]), "HOME": "/h"})
    assert once == {
        "PYTHONPATH": os.pathsep.join([str(activation.STAND_IN_DIR), "/a", "/b"]),
        "HOME": "/h",
        "SGLANG_USE_CPU_ENGINE": "1",
        "TORCHDYNAMO_DISABLE": "1",
        "PYTHONWARNINGS": with_quiet_warnings(""),
    }
    assert cpu_mode.cpu_environment(once) == once


def test_the_user_may_keep_torch_compile() -> None:
    assert cpu_mode.cpu_environment({"TORCHDYNAMO_DISABLE": "0"})["TORCHDYNAMO_DISABLE"] == "0"


def test_nothing_is_enabled_on_a_gpu_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(activation, "is_gpu_present", lambda: True)
    before = dict(os.environ), list(sys.path)
    with pytest.raises(cpu_mode.CpuModeError, match="this one has one"):
        cpu_mode.enable()
    assert (dict(os.environ), list(sys.path)) == before


def _python(program: str) -> subprocess.CompletedProcess[str]:
    """Run a program in a fresh process, without what this one may have enabled."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in ("SGLANG_USE_CPU_ENGINE", "TORCHDYNAMO_DISABLE")
    }
    paths = environment.get("PYTHONPATH", "").split(os.pathsep)
    environment["PYTHONPATH"] = os.pathsep.join(path for path in paths if path != str(activation.STAND_IN_DIR))
    return subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)


def test_the_stand_in_is_not_importable_by_accident() -> None:
    """Importing the package, its CLI included, neither puts the stand-in on the path nor switches the engine."""
    answer = _python(
        "import os, importlib.util, star_kv_sglang.cpu_mode, star_kv_sglang.cli.main; "
        "print('stand_in' in importlib.util.find_spec('sgl_kernel').origin, 'SGLANG_USE_CPU_ENGINE' in os.environ)"
    )
    assert answer.stdout.split() == ["False", "False"], answer.stderr


def test_enable_puts_the_stand_in_first_here_and_in_child_processes() -> None:
    answer = _python(
        "import importlib.util, subprocess, sys\n"
        "from star_kv_sglang import cpu_mode\n"
        "cpu_mode.enable(); cpu_mode.enable()\n"
        "where = 'import importlib.util; print(importlib.util.find_spec(\"sgl_kernel\").origin)'\n"
        "print(cpu_mode.is_enabled(), sys.path.count(str(cpu_mode.activation.STAND_IN_DIR)))\n"
        "exec(where)\n"
        "subprocess.run([sys.executable, '-c', where], check=True)\n"
    )
    stand_in = str(activation.STAND_IN_DIR / "sgl_kernel" / "__init__.py")
    state, *origins = answer.stdout.splitlines()
    assert state == "True 1", answer.stderr
    assert sorted(origins) == [stand_in, stand_in]


def test_enable_after_sglang_was_imported_is_refused() -> None:
    answer = _python(
        "import sys, types\n"
        "sys.modules['sglang.srt.utils.common'] = types.ModuleType('sglang.srt.utils.common')\n"
        "from star_kv_sglang import cpu_mode\n"
        "cpu_mode.enable()\n"
    )
    assert answer.returncode == 1
    assert "sglang.srt.utils.common was imported before cpu_mode.enable()" in answer.stderr
