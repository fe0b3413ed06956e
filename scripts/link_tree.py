"""Lay the package folders out under their import names, for use without installation.

    python scripts/link_tree.py build/tree
    PYTHONSAFEPATH=1 PYTHONPATH=build/tree python -m pytest

The folder gets `star_kv_sglang` with `triton_ops` and `patches` under it (links, so edits are seen), the tests and the
examples, and the metadata in which SGLang finds the plugin's entry point. PYTHONSAFEPATH keeps the checkout itself,
where the two folders lie beside the package, out of the import path.
"""

from __future__ import annotations

import os
import shutil
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def main(tree: Path) -> None:
    """Create `tree`. What is there and right stays as it is: programs may be running from it."""
    fresh = tree.with_name(f"{tree.name}.{os.getpid()}")
    lay_out(fresh)
    if tree.is_dir() and contents(fresh) == contents(tree):
        shutil.rmtree(fresh)
        return
    shutil.rmtree(tree, ignore_errors=True)
    fresh.rename(tree)


def contents(tree: Path) -> dict[Path, str]:
    """What a tree holds: where each link leads, and the text of each file."""
    found = {}
    for path in (*tree.iterdir(), *(tree / "star_kv_sglang").iterdir(), *tree.glob("*.dist-info/*")):
        if path.is_symlink() or path.is_file():
            found[path.relative_to(tree)] = str(path.readlink()) if path.is_symlink() else path.read_text("utf-8")
    return found


def lay_out(tree: Path) -> None:
    """Create a tree that is not there."""
    package = tree / "star_kv_sglang"
    package.mkdir(parents=True)
    for entry in (*(ROOT / "star_kv_sglang").iterdir(), ROOT / "triton_ops", ROOT / "patches"):
        if entry.name != "__pycache__":
            (package / entry.name).symlink_to(entry)
    for name in ("tests", "examples"):
        (tree / name).symlink_to(ROOT / name)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    metadata = tree / f"star_kv_sglang-{project['version']}.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n", encoding="utf-8"
    )
    groups = {**project["entry-points"], "console_scripts": project["scripts"]}
    lines = [
        line
        for group, entries in groups.items()
        for line in (f"[{group}]", *(f"{name} = {target}" for name, target in entries.items()), "")
    ]
    (metadata / "entry_points.txt").write_text("\n".join(lines), encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: link_tree.py FOLDER")
    main(Path(sys.argv[1]))
