"""Reads imports from source, without importing it."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
PACKAGE = "star_kv_sglang"
TOOLS = "tools"
_FOLDERS = {ROOT / "star_kv_sglang": "", ROOT / "triton_ops": "triton_ops", ROOT / "patches": "patches"}


@dataclass(frozen=True)
class Import:
    """One imported module.

    Attributes:
        path: file with the import, relative to the checkout.
        line: its line.
        unit: the file's unit: a folder or module directly under `star_kv_sglang` or its `tools`, by import name.
        module: full name of what is imported.
    """

    path: str
    line: int
    unit: str
    module: str

    @property
    def target(self) -> str | None:
        """The unit of this package that is imported, or None for another package."""
        parts = self.module.split(".")
        return _unit(parts[1:]) if parts[0] == PACKAGE else None

    def __str__(self) -> str:
        return f"{self.path}:{self.line} imports {self.module}"


def _unit(parts: Sequence[str]) -> str:
    """The unit of a module, from the words of its name after the package's."""
    return ".".join(parts[: 2 if list(parts[:1]) == [TOOLS] else 1])


def source_files() -> Iterator[tuple[Path, str]]:
    """Each source file of the package with its unit. The stand-in for `sgl_kernel` is a package of its own."""
    for folder, unit in _FOLDERS.items():
        for path in sorted(folder.rglob("*.py")):
            if "stand_in" not in path.parts:
                yield path, unit or _unit(path.relative_to(folder).with_suffix("").parts)


def all_imports() -> Iterator[Import]:
    """Every import statement, also those inside functions and for type checking only."""
    for path, unit in source_files():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            for module in _modules(node):
                yield Import(str(path.relative_to(ROOT)), getattr(node, "lineno", 0), unit, module)


def _modules(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if not isinstance(node, ast.ImportFrom):
        return []
    if node.level:
        return ["." * node.level + (node.module or "")]
    if node.module == PACKAGE:
        return [f"{PACKAGE}.{alias.name}" for alias in node.names]
    return [node.module or ""]
