"""The command `star-kv`: subcommands are listed without being imported, and errors are one message."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module, metadata
from pathlib import Path

import pytest
import typer

from star_kv_sglang import __version__
from star_kv_sglang.cli import main
from star_kv_sglang.compat import SUPPORTED_SGLANG
from star_kv_sglang.errors import ConfigError
from star_kv_sglang.tools.cli.run import TARGETS

# None of these may be imported by a start of the command; the first row is what comes with the extra.
TOOL_LIBRARIES = ("typer", "rich", "httpx", "jinja2", "PIL", "matplotlib", "psutil", "pynvml", "starlette", "uvicorn")
HEAVY = ("torch", "sglang", "transformers", *TOOL_LIBRARIES)


def without(*libraries: str) -> str:
    """A program's first lines: these libraries are not installed."""
    return f"""
import sys
from importlib.machinery import PathFinder
class Absent(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in {libraries} else super().find_spec(name, path, target)
sys.meta_path[:] = [Absent if finder is PathFinder else finder for finder in sys.meta_path]
"""


WITHOUT_TOOLS = without(*TOOL_LIBRARIES)


def _star_kv(*argv: str, before: str = "", after: str = "") -> subprocess.CompletedProcess[str]:
    program = (
        f"import sys\n{before}\nfrom star_kv_sglang.cli.main import main\nstatus = main()\n{after}\nsys.exit(status)"
    )
    return subprocess.run([sys.executable, "-c", program, *argv], capture_output=True, text=True, check=False)


def test_the_installed_command_is_this_one() -> None:
    (entry,) = metadata.entry_points(group="console_scripts", name="star-kv")
    assert entry.load() is main.main


def test_version() -> None:
    (sglang,) = SUPPORTED_SGLANG
    assert _star_kv("--version").stdout.strip() == f"star-kv-sglang {__version__}, SGLang {sglang}"


def test_help_lists_every_subcommand_and_imports_none_of_the_heavy_libraries() -> None:
    answer = _star_kv("--help", after=f"print('HEAVY', [name for name in {HEAVY} if name in sys.modules])")
    assert answer.returncode == 0, answer.stderr
    assert "HEAVY []" in answer.stdout
    assert "Not installed" not in answer.stdout
    assert [row.name for row in main.SUBCOMMANDS] == [
        line.split()[0] for line in answer.stdout.splitlines() if line.startswith("  ")
    ]


@pytest.mark.parametrize("row", main.SUBCOMMANDS, ids=lambda row: row.name)
def test_every_listed_subcommand_has_its_target(row: main.Subcommand) -> None:
    if row.is_tool:
        target = getattr(import_module(f"star_kv_sglang.tools.cli.{row.name}"), TARGETS[row.name])
        assert isinstance(target, typer.Typer) or callable(target)
    else:
        assert callable(import_module(f"star_kv_sglang.cli.{row.name}").run)


def test_a_subcommand_shows_its_own_help() -> None:
    answer = _star_kv("doctor", "--help")
    assert answer.returncode == 0, answer.stderr
    assert "usage: star-kv doctor" in answer.stdout
    assert "Exit status 1" in " ".join(answer.stdout.split())
    assert "Usage: star-kv replay" in _star_kv("replay", "--help").stdout


def test_an_unknown_option_of_a_subcommand_is_refused() -> None:
    answer = _star_kv("doctor", "--no-such-option")
    assert answer.returncode == 2
    assert "unrecognized arguments: --no-such-option" in answer.stderr
    answer = _star_kv("replay", "--no-such-option")
    assert answer.returncode == 2
    assert "No such option" in answer.stderr


def test_an_unknown_subcommand_is_refused_with_those_that_exist() -> None:
    answer = _star_kv("server")
    assert answer.returncode == 2
    assert answer.stderr == (
        "error: star-kv has no command 'server'; its commands are serve, doctor, rollout, eval, tune, bench, view, "
        "replay\n"
    )


def test_no_subcommand_shows_the_help_and_is_an_error() -> None:
    answer = _star_kv()
    assert answer.returncode == 2
    assert answer.stdout.startswith("usage: star-kv COMMAND")


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_a_tool_without_the_extra_says_in_one_line_what_to_install(name: str) -> None:
    answer = _star_kv(name, "--help", before=WITHOUT_TOOLS)
    assert answer.returncode == 2
    assert answer.stdout == ""
    assert answer.stderr == (
        f"error: star-kv {name} needs {', '.join(TOOL_LIBRARIES)}: pip install 'star-kv-sglang[tools]'\n"
    )


def test_a_tool_is_not_begun_where_only_the_library_that_draws_is_missing() -> None:
    """So it is beside SGLang, which brings all others: a measurement would end where its figure is drawn."""
    answer = _star_kv("bench", before=without("matplotlib"))
    assert answer.returncode == 2
    assert answer.stderr == "error: star-kv bench needs matplotlib: pip install 'star-kv-sglang[tools]'\n"


def test_the_product_s_subcommands_need_no_extra() -> None:
    assert "Not installed: rollout, eval, tune, bench, view, replay." in _star_kv("--help", before=WITHOUT_TOOLS).stdout
    assert _star_kv("doctor", "--help", before=WITHOUT_TOOLS).returncode == 0
    become = "import os; os.execve = lambda path, argv, environment: sys.exit(' '.join(argv[3:5]))\n"
    assert "serve" in _star_kv("serve", "m", before=WITHOUT_TOOLS + become).stderr


def test_an_error_of_this_package_is_one_message_without_a_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(argv: list[str]) -> int:
        raise ConfigError("--kv-budget 7 must be in (0, 1]; use [0.2] for a fifth")

    monkeypatch.setattr("star_kv_sglang.cli.doctor.run", fails)
    assert main.main(["doctor"]) == 2
    assert capsys.readouterr().err == "error: --kv-budget 7 must be in (0, 1]; use [0.2] for a fifth\n"


def test_an_error_of_a_tool_is_one_message_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace = tmp_path / "t.npz"
    trace.write_bytes(b"no trace")
    assert main.main(["view", str(trace), "--image", "x.png"]) == 2
    assert capsys.readouterr().err.startswith("error: ")
