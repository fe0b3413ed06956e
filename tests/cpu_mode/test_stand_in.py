"""The stand-in for `sgl_kernel`: what works, what raises, and no name more than SGLang needs."""

from __future__ import annotations

import ast
import importlib
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

from star_kv_sglang import cpu_mode
from star_kv_sglang.cpu_mode.activation import STAND_IN_DIR

UNTOUCHED = -1


@pytest.fixture(scope="module")
def stand_in() -> ModuleType:
    """The stand-in as SGLang gets it; importing it needs no GPU and no SGLang."""
    cpu_mode.enable()
    module = importlib.import_module("sgl_kernel")
    assert module.__file__ is not None
    assert Path(module.__file__).is_relative_to(STAND_IN_DIR)
    return module


@pytest.mark.parametrize(
    ("rows", "starts", "ends"),
    [
        pytest.param([2], [0], [5], id="one request"),
        pytest.param([3, 0, 1], [4, 0, 7], [6, 3, 8], id="three requests, rows out of order"),
        pytest.param([1, 2], [3, 2], [3, 6], id="one of them empty"),
        pytest.param([], [], [], id="no request"),
        pytest.param([0], [0], [9], id="a whole row"),
    ],
)
def test_slots_are_scattered_into_rows(
    stand_in: ModuleType, rows: list[int], starts: list[int], ends: list[int]
) -> None:
    req_to_token = torch.full((4, 9), UNTOUCHED, dtype=torch.int32)
    lengths = [end - start for start, end in zip(starts, ends, strict=True)]
    slots = torch.arange(100, 100 + sum(lengths), dtype=torch.int64)
    stand_in.assign_req_to_token_pool_cpu(
        torch.tensor(rows, dtype=torch.int64),
        req_to_token,
        torch.tensor(starts, dtype=torch.int64),
        torch.tensor(ends, dtype=torch.int64),
        slots,
        req_to_token.shape[1],
    )
    expected = torch.full((4, 9), UNTOUCHED, dtype=torch.int32)
    next_slot = iter(slots.tolist())
    for row, start, end in zip(rows, starts, ends, strict=True):
        for position in range(start, end):
            expected[row, position] = next(next_slot)
    assert torch.equal(req_to_token, expected)


def test_a_name_that_is_only_imported_raises_when_it_is_called(stand_in: ModuleType) -> None:
    with pytest.raises(NotImplementedError, match=r"sgl_kernel.verify_tree_greedy_cpu .* speculative decoding"):
        stand_in.verify_tree_greedy_cpu(torch.zeros(1))


def test_a_declared_op_raises_when_it_is_called(stand_in: ModuleType) -> None:
    with pytest.raises(NotImplementedError, match="sgl_kernel::fused_sigmoid_mul_cpu"):
        torch.ops.sgl_kernel.fused_sigmoid_mul_cpu(torch.zeros(1))


def test_sglang_does_not_take_the_stand_in_for_amx(stand_in: ModuleType) -> None:
    assert not hasattr(torch.ops.sgl_kernel, "convert_weight_packed")


def _names_bound_on_a_cpu(source: str) -> Iterator[tuple[str, str]]:
    """(module, name) of each `from sgl_kernel... import` that stands under `if _is_cpu:` or `elif is_cpu():`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("_is_cpu", "is_cpu()"):
            for statement in node.body:
                if isinstance(statement, ast.ImportFrom) and (statement.module or "").split(".")[0] == "sgl_kernel":
                    yield from ((statement.module or "", alias.name) for alias in statement.names)


def _ops_bound_on_a_cpu(source: str) -> Iterator[str]:
    """Names of `torch.ops.sgl_kernel` that a module binds while it is imported, directly under `if _is_cpu:`."""
    for node in ast.parse(source).body:
        if isinstance(node, ast.If) and ast.unparse(node.test) == "_is_cpu":
            for part in ast.walk(node):
                if isinstance(part, ast.Attribute) and ast.unparse(part.value) == "torch.ops.sgl_kernel":
                    yield part.attr


def test_the_stand_in_has_what_sglang_binds_on_a_cpu_and_nothing_else(stand_in: ModuleType) -> None:
    """Read from the installed SGLang: a name that it stops importing should leave the stand-in, a new one must come."""
    spec = importlib.util.find_spec("sglang")
    assert spec is not None and spec.origin is not None
    imported: set[tuple[str, str]] = set()
    ops: set[str] = set()
    root = Path(spec.origin).parent
    for folder in ("srt", "kernels"):
        for path in (root / folder).rglob("*.py"):
            source = path.read_text(encoding="utf-8-sig")
            if "sgl_kernel" in source:
                imported.update(_names_bound_on_a_cpu(source))
                ops.update(_ops_bound_on_a_cpu(source))
    mamba = importlib.import_module("sgl_kernel.mamba")

    def provided(module: ModuleType) -> set[tuple[str, str]]:
        return {
            (module.__name__, name) for name, value in vars(module).items() if callable(value) and name.endswith("_cpu")
        }

    assert imported == provided(stand_in) | provided(mamba)
    assert all(hasattr(torch.ops.sgl_kernel, name) for name in ops)
    assert len(ops) == 7
