"""The command `star-kv`: one row for each subcommand, imported only when it is called."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Final, cast

from star_kv_sglang import __version__
from star_kv_sglang.errors import StarKVError


@dataclass(frozen=True)
class Subcommand:
    """A word after `star-kv`.

    Attributes:
        name: the word.
        summary: its line in `star-kv --help`.
        is_tool: whether it comes with the extra `tools`. A subcommand of the product is `run(argv) -> int` in
            `star_kv_sglang.cli.<name>`.
    """

    name: str
    summary: str
    is_tool: bool


SUBCOMMANDS: Final = (
    Subcommand("serve", "Start SGLang's server, with or without a GPU; takes every flag of sglang serve.", False),
    Subcommand("doctor", "Check Python, SGLang, the plugin, the device and the hooks.", False),
    Subcommand("rollout", "Run branches of a GUI agent on a server: tokens in the pool, accuracy, time.", True),
    Subcommand("eval", "Measure accuracy under a policy and a budget.", True),
    Subcommand("tune", "Replay your own recordings under policies and budgets; says which to serve with.", True),
    Subcommand("bench", "Measure time and memory.", True),
    Subcommand("view", "Show the tree of a server, live or recorded; draw kept tokens on a screenshot.", True),
    Subcommand("replay", "Drive the production scorer with a recorded file and compare with its results.", True),
)
INSTALL_TOOLS: Final = "pip install 'star-kv-sglang[tools]'"
# The one door from the product to the tools, opened by name: the product runs without them.
_TOOLS: Final = "star_kv_sglang.tools.cli.run"
# What the extra brings, by import name.
_TOOL_LIBRARIES: Final = (
    "typer",
    "rich",
    "httpx",
    "jinja2",
    "PIL",
    "matplotlib",
    "psutil",
    "pynvml",
    "starlette",
    "uvicorn",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run `star-kv`; `argv` are the words after it, those of this process by default. Returns the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help"):
        sys.stdout.write(_help())
        return 0 if words else 2
    if words[0] == "--version":
        sys.stdout.write(f"star-kv-sglang {__version__}, {_sglang()}\n")
        return 0
    named = [subcommand for subcommand in SUBCOMMANDS if subcommand.name == words[0]]
    if not named:
        names = ", ".join(subcommand.name for subcommand in SUBCOMMANDS)
        return _refuse(f"star-kv has no command {words[0]!r}; its commands are {names}")
    try:
        return _run(named[0], words[1:])
    except StarKVError as error:
        return _refuse(str(error))


def _sglang() -> str:
    """The SGLang beside this package."""
    try:
        return f"SGLang {metadata.version('sglang')}"
    except metadata.PackageNotFoundError:
        return "SGLang is not installed"


def _run(subcommand: Subcommand, argv: list[str]) -> int:
    if not subcommand.is_tool:
        module = importlib.import_module(f"star_kv_sglang.cli.{subcommand.name}")
        return cast(int, module.run(argv))
    missing = _missing_libraries()
    if missing:
        return _refuse(f"star-kv {subcommand.name} needs {', '.join(missing)}: {INSTALL_TOOLS}")
    return cast(int, importlib.import_module(_TOOLS).run(subcommand.name, argv))


def _missing_libraries() -> list[str]:
    return [name for name in _TOOL_LIBRARIES if importlib.util.find_spec(name) is None]


def _refuse(message: str) -> int:
    sys.stderr.write(f"error: {message}\n")
    return 2


def _help() -> str:
    rows = [f"  {subcommand.name:<9}{subcommand.summary}" for subcommand in SUBCOMMANDS]
    lines = [
        "usage: star-kv COMMAND ...",
        "",
        "STaR-KV as a KV-cache policy of SGLang.",
        "",
        *rows,
        "",
        "star-kv COMMAND --help explains one of them; star-kv --version prints the version.",
    ]
    if _missing_libraries():
        tools = ", ".join(subcommand.name for subcommand in SUBCOMMANDS if subcommand.is_tool)
        lines.append(f"Not installed: {tools}. They need {INSTALL_TOOLS}")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
