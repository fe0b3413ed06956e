"""What the files of the project may not contain: paths of somebody's machine."""

from __future__ import annotations

import re
from pathlib import Path

from tests.architecture.imports import ROOT

FOLDERS = ("star_kv_sglang", "triton_ops", "patches", "examples", "tests", "scripts", ".ci", ".github", "docs")
TEXT = {".py", ".md", ".toml", ".sh", ".yaml", ".yml", ".html", ".jinja", ".j2", ".css", ".js", ".json", ".txt", ""}
MACHINE_PATH = re.compile(r"(?<![\w.])/(?:work|root|home|Users)/\w")


def _texts() -> list[Path]:
    # in a linked worktree .git is a file, which Git writes and no commit holds
    found = [path for path in ROOT.iterdir() if path.is_file() and path.name != ".git"]
    for folder in FOLDERS:
        found += [path for path in (ROOT / folder).rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    return [path for path in found if path.suffix in TEXT]


def test_no_path_of_a_machine() -> None:
    hits = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()[:100]}"
        for path in _texts()
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if MACHINE_PATH.search(line)
    ]
    assert hits == []
