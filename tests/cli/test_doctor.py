"""`star-kv doctor`: a healthy machine passes, and each thing that is wrong is found."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest

from star_kv_sglang import compat, cpu_mode
from star_kv_sglang.cli import doctor
from star_kv_sglang.cli.doctor import Check


def test_this_machine_is_healthy() -> None:
    command = [sys.executable, "-m", "star_kv_sglang.cli.main", "doctor"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert len(re.findall(r"^ok  ", answer.stdout, re.MULTILINE)) == len(doctor.CHECKS)


def _broken_driver() -> bool:
    raise cpu_mode.CpuModeError("libcuda.so.1 is installed but does not start")


def _version_of(name: str, version: str) -> Callable[[str], str]:
    real = metadata.version
    return lambda asked: version if asked == name else real(asked)


@pytest.mark.parametrize(
    ("target", "value", "check", "words"),
    [
        pytest.param("sys.version_info", (3, 10, 4), doctor.check_python, "", id="old Python"),
        pytest.param(
            "metadata.version",
            _version_of("sglang", "0.5.22"),
            doctor.check_sglang,
            "0.5.22; supported: 0.5.23",
            id="another SGLang",
        ),
        pytest.param(
            "metadata.version",
            _version_of("torch", "2.9.1"),
            doctor.check_pins,
            "torch 2.9.1 (SGLang needs ==2.14.1)",
            id="another torch",
        ),
        pytest.param("PLUGIN_NAME", "gone", doctor.check_plugin, "no entry point 'gone'", id="plugin not installed"),
        pytest.param(
            "cpu_mode.is_gpu_present", _broken_driver, doctor.check_device, "does not start", id="broken driver"
        ),
        pytest.param(
            "compat.sglang_problems", lambda: ["RadixCache.evict is gone"], doctor.check_seams, "evict", id="moved seam"
        ),
    ],
)
def test_what_is_wrong_is_found(
    monkeypatch: pytest.MonkeyPatch, target: str, value: object, check: Callable[[], Check], words: str
) -> None:
    monkeypatch.setattr(f"star_kv_sglang.cli.doctor.{target}", value)
    result = check()
    assert not result.ok
    assert words in result.detail


def test_a_missing_sglang_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    result = doctor.check_sglang()
    assert not result.ok
    assert result.detail.startswith("not installed; supported: " + ", ".join(compat.SUPPORTED_SGLANG))


def test_libraries_that_are_missing_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    real = metadata.version

    def version(name: str) -> str:
        if name == "torch":
            raise metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(metadata, "version", version)
    result = doctor.check_pins()
    assert not result.ok
    assert "torch is not installed (SGLang needs ==2.14.1)" in result.detail


def test_without_sglang_every_check_has_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    monkeypatch.setattr(metadata, "requires", missing)
    for check in (doctor.check_sglang, doctor.check_pins, doctor.check_seams):
        result = check()
        assert not result.ok and "not installed" in result.detail


@pytest.mark.parametrize(
    ("allowed", "ok"),
    [("", True), ("star_kv", True), ("smg-zmq, star_kv", True), ("smg-zmq", False)],
    ids=["unset", "alone", "in a list", "left out"],
)
def test_sglang_plugins_may_leave_the_plugin_out(monkeypatch: pytest.MonkeyPatch, allowed: str, ok: bool) -> None:
    monkeypatch.setenv("SGLANG_PLUGINS", allowed)
    assert doctor.check_plugin().ok is ok


def test_something_wrong_gives_status_1(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(doctor, "CHECKS", (lambda: Check("A", True, "fine"), lambda: Check("B", False, "not fine")))
    assert doctor.run([]) == 1
    assert re.search(r"^wrong +B +not fine$", capsys.readouterr().out, re.MULTILINE)


def test_a_folder_without_sglang_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        doctor.run(["--sglang", str(tmp_path)])
    assert stop.value.code == 2
    assert f"{tmp_path} has no folder srt" in capsys.readouterr().err
