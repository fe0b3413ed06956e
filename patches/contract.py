"""Compare an SGLang with what is declared about it, by reading its source: nothing of it is imported or started."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from star_kv_sglang.patches.seam import Seam

_ANY_FILE = "*"
_Function = ast.FunctionDef | ast.AsyncFunctionDef


class SourceTree:
    """The source of the packages that seams name.

    Args:
        folders: Where a package lies, by its name; others are looked up where Python would import them from.
    """

    def __init__(self, folders: Mapping[str, Path] | None = None) -> None:
        self._folders = dict(folders or {})

    def find(self, target: str) -> list[ast.AST]:
        """Every statement that makes the name exist; empty when nothing does.

        Args:
            target: Dotted path of a module's function, class or variable, or of a member of a class: a method, a field
                of a record, or what a method sets on ``self``.
        """
        package, *names = target.split(".")
        path, rest = self._folder(package), names
        while rest and (path / rest[0]).is_dir():
            path, rest = path / rest[0], rest[1:]
        if not rest:
            return []
        if rest[0] == _ANY_FILE:
            files = sorted(path.glob("*.py"))
            return [found for file in files for owner in _names(file) for found in _find_in(file, [owner, rest[1]])]
        file = path / f"{rest[0]}.py"
        inside = rest[1:] if file.is_file() else rest
        return _find_in(file if file.is_file() else path / "__init__.py", inside)

    def version(self, package: str) -> str:
        """Version of a package by the metadata beside its folder, or ``unknown``."""
        found = sorted(self._folder(package).parent.glob(f"{package}-*.dist-info"))
        return found[-1].name.removeprefix(f"{package}-").removesuffix(".dist-info") if found else "unknown"

    def _folder(self, package: str) -> Path:
        if package not in self._folders:
            spec = find_spec(package)
            if spec is None or not spec.submodule_search_locations:
                raise ModuleNotFoundError(f"{package} is not installed")
            self._folders[package] = Path(next(iter(spec.submodule_search_locations)))
        return self._folders[package]


def seam_problems(seams: Iterable[Seam], source: SourceTree | None = None) -> list[str]:
    """One line for each seam that the source does not have as declared."""
    source = source or SourceTree()
    problems = []
    for seam in seams:
        try:
            found = source.find(seam.target)
        except ModuleNotFoundError as error:
            problems.append(f"{seam.target}: {error}; needed for: {seam.why}")
            continue
        if not found:
            problems.append(f"{seam.target} ({seam.upstream}) does not exist; needed for: {seam.why}")
            continue
        actual = signature_of(found) if seam.signature is not None else None
        if actual != seam.signature:
            problems.append(
                f"{seam.target} ({seam.upstream}) is {actual}, expected {seam.signature}; needed for: {seam.why}"
            )
    return problems


def signature_of(found: Iterable[ast.AST]) -> str | None:
    """Parameters of the last definition among the statements, without annotations; None where none is a function."""
    functions = [node for node in found if isinstance(node, _Function)]
    if not functions:
        return None
    parameters = functions[-1].args
    for parameter in ast.walk(parameters):
        if isinstance(parameter, ast.arg):
            parameter.annotation = None
    return f"({ast.unparse(parameters)})"


@cache
def _names(file: Path) -> dict[str, list[ast.AST]]:
    """What a module defines, by name; empty where there is no such file."""
    found: dict[str, list[ast.AST]] = {}
    if file.is_file():
        for node in _statements(ast.parse(file.read_text(encoding="utf-8")).body):
            for name in _bound(node):
                found.setdefault(name, []).append(node)
    return found


@cache
def _members(owner: ast.ClassDef) -> dict[str, list[ast.AST]]:
    """What a class defines, by name: statements of its body, and what its methods set on ``self``."""
    found: dict[str, list[ast.AST]] = {}
    for node in _statements(owner.body):
        for name in _bound(node):
            found.setdefault(name, []).append(node)
    for inner in ast.walk(owner):
        if isinstance(inner, ast.Attribute) and isinstance(inner.ctx, ast.Store) and _is_self(inner.value):
            found.setdefault(inner.attr, [inner])
    return found


def _find_in(file: Path, names: list[str]) -> list[ast.AST]:
    if not names:
        return []
    found = _names(file).get(names[0], [])
    if len(names) == 1:
        return found
    return [
        member for owner in found if isinstance(owner, ast.ClassDef) for member in _members(owner).get(names[1], [])
    ]


def _statements(body: Iterable[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements of a module or class, those under a condition too."""
    for node in body:
        yield node
        if isinstance(node, ast.If | ast.Try):
            yield from _statements([*node.body, *node.orelse])


def _bound(node: ast.AST) -> set[str]:
    """Names that a statement of a module or class gives a meaning."""
    if isinstance(node, _Function | ast.ClassDef):
        return {node.name}
    if isinstance(node, ast.Assign):
        return {target.id for target in node.targets if isinstance(target, ast.Name)}
    if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
        return {node.target.id}
    if isinstance(node, ast.ImportFrom):
        return {alias.asname or alias.name for alias in node.names}
    return set()


def _is_self(node: ast.AST) -> bool:
    return isinstance(node, ast.Name) and node.id == "self"
