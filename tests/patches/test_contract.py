"""What is relied on of SGLang is declared, the installed SGLang has it, and what moved is told by name."""

from __future__ import annotations

import ast
import importlib
import inspect
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import pytest

from star_kv_sglang import compat
from star_kv_sglang.errors import SeamMovedError
from star_kv_sglang.patches import manifest
from star_kv_sglang.patches.contract import SourceTree
from star_kv_sglang.patches.seam import SeamKind
from tests.architecture.imports import ROOT

TARGETS = {seam.target for seam in manifest.ALL}
OURS = ("cache", "engine", "attention")
"""Folders of the package that handle SGLang's objects."""

# By what name our code calls an object of SGLang's, and what it is.
OBJECTS = {
    "req": "sglang.srt.managers.schedule_batch.Req",
    "kv": "sglang.srt.managers.schedule_batch.ReqKvInfo",
    "sampling_params": "sglang.srt.sampling.sampling_params.SamplingParams",
    "batch": "sglang.srt.managers.schedule_batch.ScheduleBatch",
    "multimodal_inputs": "sglang.srt.managers.schedule_batch.MultimodalInputs",
    "item": "sglang.srt.managers.schedule_batch.MultimodalDataItem",
    "forward_batch": "sglang.srt.model_executor.forward_batch_info.ForwardBatch",
    "forward_mode": "sglang.srt.model_executor.forward_batch_info.ForwardMode",
    "node": "sglang.srt.mem_cache.radix_cache.TreeNode",
    "child": "sglang.srt.mem_cache.radix_cache.TreeNode",
    "leaf": "sglang.srt.mem_cache.radix_cache.TreeNode",
    "parent": "sglang.srt.mem_cache.radix_cache.TreeNode",
    "key": "sglang.srt.mem_cache.radix_cache.RadixKey",
    "rest": "sglang.srt.mem_cache.radix_cache.RadixKey",
    "scheduler": "sglang.srt.managers.scheduler.Scheduler",
    "_scheduler": "sglang.srt.managers.scheduler.Scheduler",
    "metrics": "sglang.srt.observability.metrics_collector.SchedulerMetricsCollectorContext",
    "collector": "sglang.srt.observability.metrics_collector.SchedulerMetricsCollector",
    "runner": "sglang.srt.model_executor.model_runner.ModelRunner",
    "model_runner": "sglang.srt.model_executor.model_runner.ModelRunner",
    "model_config": "sglang.srt.configs.model_config.ModelConfig",
    "req_to_token_pool": "sglang.srt.mem_cache.memory_pool.ReqToTokenPool",
    "token_to_kv_pool_allocator": "sglang.srt.mem_cache.allocator.base.BaseTokenToKVPoolAllocator",
    "allocator": "sglang.srt.mem_cache.allocator.base.BaseTokenToKVPoolAllocator",
    "kv_events": "sglang.srt.mem_cache.events.KVCacheEventRecorder",
    "layer": "sglang.srt.layers.radix_attention.RadixAttention",
    "metadata": "sglang.srt.layers.attention.flashinfer_backend.PrefillMetadata",
    "wrapper": "flashinfer.decode.BatchDecodeWithPagedKVCacheWrapper",
}


def test_the_installed_sglang_has_every_seam() -> None:
    assert compat.seam_problems() == []


def test_no_seam_is_declared_twice() -> None:
    assert sorted(TARGETS) == sorted(seam.target for seam in manifest.ALL)


@pytest.mark.slow
def test_every_override_is_declared() -> None:
    classes = {name: ours for module in _our_modules() for name, ours in _classes_of(module)}
    # What was found by hand once: the search must not come back with less.
    assert {
        "HoledTree", "StarRadixCache", "StarTorchNativeBackend", "StarFlashInferBackend", "StarDecodeUpdater",
        "StarServerArgs",
    } <= set(classes)  # fmt: skip
    missing = [name for ours in classes.values() for name in _overrides(ours) if name not in TARGETS]
    assert missing == []


def _our_modules() -> Iterator[str]:
    """Every module of the package that may handle SGLang's objects."""
    for path in _sources():
        yield ".".join(("star_kv_sglang", *path.relative_to(ROOT).with_suffix("").parts)).replace(
            "star_kv_sglang.star_kv_sglang", "star_kv_sglang"
        )
    yield "star_kv_sglang.server_args"
    yield "star_kv_sglang.frontend"


def _classes_of(module: str) -> Iterator[tuple[str, type]]:
    """Classes that a module defines and that extend one of SGLang's."""
    for name, found in vars(importlib.import_module(module)).items():
        if isinstance(found, type) and found.__module__ == module and _is_of_sglang(found):
            yield name, found


def _is_of_sglang(ours: type) -> bool:
    return any(base.__module__.startswith(("sglang.", "flashinfer.")) for base in ours.__mro__[1:])


def _overrides(ours: type) -> Iterator[str]:
    """Dotted names of SGLang's methods that a class of ours replaces."""
    for name, member in vars(ours).items():
        # Others' plugins wrap methods of this class too.
        if getattr(inspect.unwrap(member) if callable(member) else None, "__module__", None) != ours.__module__:
            continue
        owner = next((base for base in ours.__mro__[1:] if name in vars(base)), None)
        if owner is not None and owner.__module__.startswith("sglang."):
            yield f"{owner.__module__}.{owner.__qualname__}.{name}"


def test_every_field_that_is_read_is_declared() -> None:
    missing = {
        f"{path.relative_to(ROOT)}:{node.lineno}: {OBJECTS[name]}.{node.attr}"
        for path in _sources()
        for node, name in _accesses(ast.parse(path.read_text(encoding="utf-8")))
        if f"{OBJECTS[name]}.{node.attr}" not in TARGETS
    }
    assert sorted(missing) == []


def _sources() -> list[Path]:
    folders = [ROOT / "star_kv_sglang" / name for name in OURS]
    return [*sorted(path for folder in folders for path in folder.glob("*.py")), ROOT / "patches" / "hooks.py"]


def _accesses(tree: ast.Module) -> Iterator[tuple[ast.Attribute, str]]:
    """Attributes of what bears the name of an object of SGLang's, as a variable or itself as an attribute."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and not node.attr.startswith("__"):
            name = node.value.id if isinstance(node.value, ast.Name) else getattr(node.value, "attr", None)
            if name in OBJECTS:
                yield node, name


def test_what_the_tree_has_from_sglang_is_declared() -> None:
    """Names on ``self`` in the tree's classes that these do not define, and those that others ask the tree for."""
    classes = [_class_in("holed_tree", "HoledTree"), _class_in("radix_cache", "StarRadixCache")]
    on_self = [
        node
        for ours in classes
        for node in ast.walk(ours)
        if isinstance(node, ast.Attribute) and getattr(node.value, "id", "") == "self"
    ]
    defined = {node.name for ours in classes for node in ours.body if isinstance(node, ast.FunctionDef)}
    # What is also SGLang's must be declared although we set it.
    set_here = {node.attr for node in on_self if isinstance(node.ctx, ast.Store)} - {
        "evictable_size_",
        "protected_size_",
    }
    asked = [
        node
        for path in _sources()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute)
        and (getattr(node.value, "id", "") == "tree" or getattr(node.value, "attr", "") in ("tree", "_tree"))
    ]
    bases = ("sglang.srt.mem_cache.radix_cache.RadixCache.", "sglang.srt.mem_cache.base_prefix_cache.BasePrefixCache.")
    names = {node.attr for node in (*on_self, *asked)} - defined - set_here
    assert [name for name in sorted(names) if not any(base + name in TARGETS for base in bases)] == []


def _class_in(module: str, name: str) -> ast.ClassDef:
    source = (ROOT / "star_kv_sglang" / "cache" / f"{module}.py").read_text(encoding="utf-8")
    (found,) = (node for node in ast.parse(source).body if isinstance(node, ast.ClassDef) and node.name == name)
    return found


def test_a_renamed_method_and_a_changed_signature_are_named(tmp_path: Path) -> None:
    folder = _copy_of_sglang(tmp_path)
    file = folder / "srt" / "mem_cache" / "radix_cache.py"
    source = file.read_text(encoding="utf-8")
    file.unlink()
    file.write_text(
        source.replace("def _split_node(self, key", "def _cut_node(self, key").replace(
            "def checkpoint(self, req: Req, *, up_to: int)", "def checkpoint(self, req: Req, up_to: int)"
        ),
        encoding="utf-8",
    )
    problems = compat.seam_problems(folder)
    assert len(problems) == 2
    assert "RadixCache.checkpoint (srt/mem_cache/radix_cache.py) is (self, req, up_to), expected" in problems[0]
    assert "RadixCache._split_node (srt/mem_cache/radix_cache.py) does not exist" in problems[1]


def test_a_flag_and_a_private_field_that_are_gone_are_named(tmp_path: Path) -> None:
    folder = _copy_of_sglang(tmp_path)
    for name, old, new in (
        ("srt/arg_groups/fields/memory.py", "enable_flexkv: A[", "enable_flex: A["),
        ("srt/mem_cache/radix_cache.py", "self.evictable_size_", "self.evictable"),
    ):
        file = folder / name
        source = file.read_text(encoding="utf-8")
        assert old in source
        file.unlink()
        file.write_text(source.replace(old, new), encoding="utf-8")
    assert [problem.split(" ")[0] for problem in compat.seam_problems(folder)] == [
        "sglang.srt.mem_cache.radix_cache.RadixCache.evictable_size_",
        "sglang.srt.arg_groups.fields.*.enable_flexkv",
    ]


def test_a_package_that_is_not_there_is_told() -> None:
    with pytest.raises(ModuleNotFoundError, match="no_such_package is not installed"):
        SourceTree().find("no_such_package.module.name")


def _copy_of_sglang(tmp_path: Path) -> Path:
    """SGLang's package as links, so that single files can be exchanged."""
    original = SourceTree()._folder("sglang")
    copy = tmp_path / "sglang"
    parts = [(original / name).rglob("*.py") for name in ("srt", "lang", "cli")]
    for file in (*chain.from_iterable(parts), original / "utils.py"):
        target = copy / file.relative_to(original)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(file)
    return copy


def test_hooks_exist() -> None:
    from star_kv_sglang.patches import hooks

    seams = (
        *manifest.HOOKS,
        *manifest.REQUEST_HOOKS,
        *manifest.IMAGE_HOOKS,
        *manifest.REFERENCE_HOOKS,
        *manifest.PROGRAM_HOOKS,
    )
    assert [seam.target for seam in seams if not hasattr(hooks, seam.hook or "")] == []
    assert {seam.kind for seam in seams} <= {SeamKind.AROUND, SeamKind.AFTER}


def test_processes_of_one_server_read_sglang_s_source_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its first process tells those that it starts, in their environment; another SGLang is looked at again."""
    looked = []

    def look() -> list[str]:
        looked.append(1)
        return []

    monkeypatch.setenv(compat.CHECKED_SGLANG, "/elsewhere/sglang/__init__.py 0.5.22 0.1.0")
    monkeypatch.setattr(compat, "seam_problems", look)
    for _ in range(2):
        compat.require_supported_sglang()
    assert len(looked) == 1
    monkeypatch.delenv(compat.CHECKED_SGLANG)
    monkeypatch.setattr(compat, "seam_problems", lambda: ["RadixCache.evict is gone"])
    for _ in range(2):
        with pytest.raises(SeamMovedError, match="evict is gone"):
            compat.require_supported_sglang()


@pytest.mark.parametrize("file", ["srt/mem_cache/radix_cache.py", "srt/arg_groups/fields/memory.py"])
def test_a_file_that_has_changed_since_is_compared_again(tmp_path: Path, file: str) -> None:
    """Of what is looked at, the arguments that rules read among it."""
    folder = _copy_of_sglang(tmp_path)
    before = compat._newest_change(folder)
    text = (folder / file).read_text(encoding="utf-8")
    (folder / file).unlink()
    (folder / file).write_text(text, encoding="utf-8")
    assert compat._newest_change(folder) > before
