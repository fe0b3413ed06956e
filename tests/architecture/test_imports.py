"""Imports go down only, and SGLang is imported where the package extends it and nowhere else."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.architecture.imports import ROOT, Import, all_imports, source_files

# Who may import what of this package; everybody may import its own unit and `errors`.
ALLOWED: dict[str, set[str]] = {
    # the method: plain torch
    "triton_ops": set(),
    "algorithm": {"triton_ops"},
    "policies": {"algorithm", "triton_ops", "limits"},
    # what a user says
    "errors": set(),
    "limits": set(),
    "request_params": {"limits"},
    "introspection": set(),
    # what a server tells a trainer
    "kept_format": set(),
    "config": {"limits", "policies", "introspection"},
    "flags": {"config", "limits", "introspection"},
    "server_args": {"config", "flags", "compat", "limits", "images", "introspection"},
    # inside SGLang's processes
    "cache": {"algorithm", "triton_ops", "config", "introspection", "kept_format"},
    "metrics": set(),
    "images": set(),
    "engine": {
        *("algorithm", "triton_ops", "request_params", "config"),
        *("cache", "policies", "metrics", "introspection", "kept_format"),
    },
    "attention": {"triton_ops", "config", "cache", "engine"},
    # the way into SGLang
    "patches": {
        *("algorithm", "triton_ops", "config", "request_params", "server_args", "compat"),
        *("cache", "engine", "attention", "images", "introspection", "cpu_mode"),
    },
    "compat": {"config", "request_params", "server_args", "patches"},
    "plugin": {"config", "server_args", "compat", "engine", "patches", "cpu_mode"},
    # a client of a server, in a program of SGLang's frontend language
    "frontend": {"patches"},
    # a trainer, beside no SGLang: torch and transformers
    "rl": {"kept_format"},
    # beside SGLang: what starts it
    "cpu_mode": set(),
    "cli": {"cpu_mode", "compat", "config", "flags", "patches"},
    # the tools, in one folder: what measures and draws
    "tools.__init__": set(),
    "tools.image_references": set(),
    "tools.chat": {"tools.image_references"},
    "tools.measuring": set(),
    "tools.resize": set(),
    "tools.markdown": set(),
    "tools.folder_lock": set(),
    "tools.actions": set(),
    "tools.rollout": {
        *("cpu_mode", "config", "tools.actions", "tools.chat", "tools.folder_lock", "tools.image_references"),
    },
    # who plays in a rollout, and where
    "tools.browser": {"tools.actions", "tools.rollout"},
    "tools.agents": {"tools.actions", "tools.eval", "tools.rollout"},
    "tools.report": {"tools.rollout"},
    "tools.view": {"introspection"},
    "tools.eval": {
        *("algorithm", "triton_ops", "cpu_mode", "policies", "config"),
        *("tools.actions", "tools.chat", "tools.measuring", "tools.resize", "tools.rollout"),
    },
    "tools.tune": {
        *("tools.actions", "tools.folder_lock", "tools.resize", "tools.rollout", "tools.report", "tools.eval"),
    },
    "tools.bench": {
        "triton_ops",
        "cpu_mode",
        "engine",
        "cache",
        "tools.measuring",
        "tools.resize",
        "tools.rollout",
        "tools.image_references",
    },
    "tools.cli": {
        *("algorithm", "triton_ops", "cpu_mode", "policies"),
        *("tools.chat", "tools.rollout", "tools.report", "tools.eval", "tools.bench", "tools.view", "tools.tune"),
        *("tools.agents", "tools.browser", "tools.markdown"),
    },
    "__init__": set(),
}
MAY_IMPORT_SGLANG = {
    *("patches", "images", "cache", "engine", "attention", "server_args", "compat", "plugin", "frontend"),
    "tools.bench",
}
# tools that run an engine, as any program may: the public package, none of its modules
MAY_RUN_AN_ENGINE = {"tools.eval"}
# attributes of the package itself
PACKAGE_NAMES = {"", "__version__", "errors"}

IMPORTS = tuple(all_imports())
UNITS = sorted({unit for _, unit in source_files()})


def _of(unit: str) -> list[Import]:
    return [found for found in IMPORTS if found.unit == unit]


def test_every_unit_has_a_rule() -> None:
    assert set(UNITS) <= set(ALLOWED), "a new folder or module needs its line in ALLOWED"


@pytest.mark.parametrize("unit", UNITS)
def test_imports_go_down_only(unit: str) -> None:
    allowed = ALLOWED[unit] | PACKAGE_NAMES | {unit, None}
    assert [str(found) for found in _of(unit) if found.target not in allowed] == []


def test_the_product_never_imports_the_tools() -> None:
    """By no import, and by no name in a string: the one door is the command's, which opens it when a tool is called."""
    product = [unit for unit in UNITS if not unit.startswith("tools")]
    assert [str(one) for unit in product for one in _of(unit) if (one.target or "").startswith("tools")] == []
    named = [
        path.relative_to(ROOT).as_posix()
        for path, unit in source_files()
        if unit in product and "star_kv_sglang.tools" in path.read_text(encoding="utf-8")
    ]
    assert named == ["star_kv_sglang/cli/main.py"]


def test_no_rule_is_a_circle_except_the_one_of_the_flags() -> None:
    """`compat` asks `patches` whether SGLang's seams are there; `patches` asks `compat` which version is supported."""
    tolerated = {("compat", "patches"), ("compat", "server_args")}
    edges = {(unit, below) for unit, units in ALLOWED.items() for below in units} - tolerated
    order: list[str] = []
    while len(order) < len(ALLOWED):
        free = [unit for unit in ALLOWED if unit not in order and not {b for a, b in edges if a == unit} - set(order)]
        assert free, f"these import each other: {sorted(set(ALLOWED) - set(order))}"
        order += free


@pytest.mark.parametrize("unit", UNITS)
def test_sglang_is_imported_only_where_it_is_extended(unit: str) -> None:
    public = {"sglang"} if unit in MAY_RUN_AN_ENGINE else set()
    if unit not in MAY_IMPORT_SGLANG:
        found = [one for one in _of(unit) if one.module.split(".")[0] in ("sglang", "sgl_kernel")]
        assert [str(one) for one in found if one.module not in public] == []


def test_imports_are_absolute() -> None:
    """`triton_ops` and `patches` are mapped into the package: a relative import would hide where it leads."""
    assert [str(found) for found in IMPORTS if found.module.startswith(".")] == []


@pytest.mark.parametrize("module", ["cache.sharing", "cache.node_extra", "cache.segments", "limits"])
def test_plain_bookkeeping_needs_no_torch(module: str) -> None:
    program = f"import sys, star_kv_sglang.{module}; print('torch' in sys.modules)"
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert answer.stdout.strip() == "False", answer.stderr
