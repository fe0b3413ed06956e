"""What is released: a source distribution, and the wheel built from it; every file, the entry points, nothing else."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from star_kv_sglang import __version__
from tests.architecture.imports import ROOT, all_imports

FOLDERS = ("star_kv_sglang", "triton_ops", "patches")
# Each of them is needed by SGLang as well.
SERVING = {"sglang", "numpy", "packaging", "prometheus-client", "pyyaml", "torch"}
DIST_INFO = f"star_kv_sglang-{__version__}.dist-info"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, because setuptools leaves its build folder beside the sources."""
    copy = tmp_path_factory.mktemp("checkout")
    for folder in (*FOLDERS, "examples", "tests"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__", "model", "golden"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    out = copy / "out"
    # Without a target the wheel is built from the source distribution, so that a file which that lacks is seen.
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(copy)]
    answer = subprocess.run(build, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    (path,) = out.glob("*.whl")
    return path


def _package_files() -> set[str]:
    """Names that the wheel should have: the folders beside the package lie under it."""
    files = set()
    for folder in FOLDERS:
        prefix = "" if folder == "star_kv_sglang" else "star_kv_sglang/"
        for path in (ROOT / folder).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                files.add(prefix + path.relative_to(ROOT).as_posix())
    return files


def test_every_file_of_the_package_and_no_other_is_in_it(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    packaged = {name for name in names if not name.startswith(DIST_INFO)}
    assert packaged == _package_files()
    assert {name for name in names - packaged if "LICENSE" in name}, "the licence is missing"


def test_the_source_distribution_has_what_it_is_built_from(wheel: Path) -> None:
    (path,) = wheel.parent.glob("*.tar.gz")
    with tarfile.open(path) as sources:
        names = {name.partition("/")[2] for name in sources.getnames()}
    assert {"pyproject.toml", "setup.py", "README.md", "LICENSE", "triton_ops", "patches"} <= names


def test_it_installs_in_a_clean_environment(wheel: Path, tmp_path: Path) -> None:
    """By a package installer, with nothing beside it: what needs SGLang says so. `make check-wheel` adds SGLang."""
    uv = [sys.executable, "-m", "uv", "--quiet", "--offline"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    subprocess.run([*uv, "venv", "--python", sys.executable, str(tmp_path / "venv")], check=True, env=environment)
    python = str(tmp_path / "venv" / "bin" / "python")
    subprocess.run([*uv, "pip", "install", "--python", python, "--no-deps", str(wheel)], check=True, env=environment)

    def star_kv(*words: str) -> subprocess.CompletedProcess[str]:
        command = [str(tmp_path / "venv" / "bin" / "star-kv"), *words]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)

    assert star_kv("--version").stdout == f"star-kv-sglang {__version__}, SGLang is not installed\n"
    assert star_kv("--help").returncode == 0
    rollout = star_kv("rollout", "nothing.json")
    assert (rollout.returncode, "star-kv-sglang[tools]" in rollout.stderr) == (2, True)


def test_what_it_needs_without_an_extra_is_what_serving_needs(wheel: Path) -> None:
    """The libraries of the tools come with the extra `tools`, and `dev` has it too."""
    metadata = message_from_bytes(zipfile.ZipFile(wheel).read(f"{DIST_INFO}/METADATA"))
    needs = [Requirement(text) for text in metadata.get_all("Requires-Dist", [])]

    def names(extra: str) -> set[str]:
        """What an extra brings; "" is the bare wheel."""
        return {need.name for need in needs if need.marker is None or need.marker.evaluate({"extra": extra})}

    assert names("") == SERVING
    assert names("tools") - SERVING == {
        *("httpx", "jinja2", "matplotlib", "nvidia-ml-py", "pillow", "psutil", "rich", "starlette", "typer", "uvicorn")
    }
    assert "star-kv-sglang" in names("dev")


def test_it_says_for_which_python_it_is_and_where_to_read_on(wheel: Path) -> None:
    metadata = message_from_bytes(zipfile.ZipFile(wheel).read(f"{DIST_INFO}/METADATA"))
    assert metadata["Requires-Python"] == "<3.13,>=3.11"
    assert metadata.get_all("Project-URL") == [
        "Paper, https://arxiv.org/abs/2606.01790",
        "Engine, https://github.com/sgl-project/sglang",
    ]


def test_the_product_imports_nothing_that_it_does_not_name() -> None:
    """What the wheel requires covers every import outside of the tools. Three come with SGLang."""
    given = {"sglang", "sgl_kernel", "triton", "flashinfer", "setproctitle", "star_kv_sglang", *sys.stdlib_module_names}
    imported = {one.module.split(".")[0] for one in all_imports() if not one.unit.startswith("tools")}
    assert imported - given == {"numpy", "packaging", "prometheus_client", "torch", "yaml"}


def test_it_works_from_an_unpacked_folder(wheel: Path, tmp_path: Path) -> None:
    """What pip unpacks is imported under its import names, and SGLang would find the plugin."""
    zipfile.ZipFile(wheel).extractall(tmp_path)
    program = (
        "import star_kv_sglang, star_kv_sglang.algorithm, star_kv_sglang.triton_ops, star_kv_sglang.patches\n"
        "from importlib import metadata\n"
        "print(star_kv_sglang.patches.__file__)\n"
        "print(metadata.distribution('star-kv-sglang')._path)\n"
        "(entry,) = metadata.entry_points(group='sglang.srt.plugins', name='star_kv')\n"
        "print(entry.load().__qualname__)\n"
        "from star_kv_sglang.cpu_mode.activation import STAND_IN_DIR\n"
        "print((STAND_IN_DIR / 'sgl_kernel' / '__init__.py').is_file())\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "PYTHONSAFEPATH": "1"}
    answer = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False
    )
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.splitlines() == [
        str(tmp_path / "star_kv_sglang" / "patches" / "__init__.py"),
        str(tmp_path / DIST_INFO),
        "register",
        "True",
    ]
