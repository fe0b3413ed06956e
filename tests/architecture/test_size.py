"""How long the product's classes and functions are: nothing grows past what a reader can hold, without a reason.

Lines count from the first decorator to the last statement, without the docstring of the class or function itself: what
explains shapes and errors makes nothing harder to read.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.architecture.imports import ROOT

MOST_LINES_OF_A_CLASS = 250
MOST_LINES_OF_A_FUNCTION = 50
TOOLS = {"cli", "tune", "eval", "bench", "rollout", "report", "view", "agents", "browser"}
"""Folders of the package that run beside SGLang."""

_KERNEL = "one launch: a part of it would take or give back all that its programs hold in registers"

EXCEPTIONS: dict[str, str] = {
    "triton_ops/frame_stability/kernel.py:frame_stability_kernel": _KERNEL,
    "triton_ops/fuse_scores/kernel.py:fuse_groups_kernel": _KERNEL,
    "triton_ops/fuse_scores/kernel.py:temperature_kernel": _KERNEL,
    "triton_ops/kept_copies/kernel.py:kept_copies_kernel": _KERNEL,
    "triton_ops/peak_ranks/kernel.py:counted_kernel": _KERNEL,
    "triton_ops/place_scores/kernel.py:place_scores_kernel": _KERNEL,
    "triton_ops/select/kernel.py:segment_quota_kernel": _KERNEL,
    "triton_ops/spatial_boost/kernel.py:spatial_boost_kernel": _KERNEL,
    "triton_ops/spatial_mi/kernel.py:spatial_mi_kernel": _KERNEL,
    "triton_ops/window_scores/kernel.py:window_softmax_kernel": _KERNEL,
    "triton_ops/window_scores/kernel.py:window_pool_kernel": _KERNEL,
    "triton_ops/frame_stability/op.py:frame_stability": "one launch, and the checks of its arguments",
    "triton_ops/place_scores/op.py:place_scores": "one launch, and the checks of its arguments",
    "triton_ops/fuse_scores/op.py:fuse_scores": "three launches in a row over the same buffers, and the checks of them",
}
"""By file and name: why it is longer."""


def _files() -> Iterator[Path]:
    for folder in ("star_kv_sglang", "triton_ops", "patches"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            if not TOOLS & set(path.relative_to(ROOT).parts) and "stand_in" not in path.parts:
                yield path


def _long_ones(path: Path) -> Iterator[tuple[str, int]]:
    """Name and lines of every class and function of a file that is too long."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            lines = (node.end_lineno or first) - first + 1 - _docstring_lines(node)
            most = MOST_LINES_OF_A_CLASS if isinstance(node, ast.ClassDef) else MOST_LINES_OF_A_FUNCTION
            if lines > most:
                yield f"{path.relative_to(ROOT)}:{node.name}", lines


def _docstring_lines(node: ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    text = ast.get_docstring(node, clean=False)
    return 0 if text is None else text.count("\n") + 1


@pytest.fixture(scope="module")
def long_ones() -> dict[str, int]:
    return {name: lines for path in _files() for name, lines in _long_ones(path)}


def test_the_product_is_found() -> None:
    names = {str(path.relative_to(ROOT)) for path in _files()}
    assert {"star_kv_sglang/engine/scoring.py", "triton_ops/select/op.py", "patches/hooks.py"} <= names
    assert not any(name.startswith("star_kv_sglang/eval") for name in names)


def test_what_is_long_has_a_reason(long_ones: dict[str, int]) -> None:
    assert {name: lines for name, lines in long_ones.items() if name not in EXCEPTIONS} == {}


def test_no_reason_is_left_behind(long_ones: dict[str, int]) -> None:
    assert set(EXCEPTIONS) - set(long_ones) == set()
