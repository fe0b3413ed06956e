"""What the engine tests share: the checkpoints, and what they are on a machine with a GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from star_kv_sglang import cpu_mode
from tests.engine.harness import TestEngine, running_engine
from tests.models.checkpoints import EXAMPLE_MODEL, MAKERS

_ENGINES = ("played", "arguments", "kind")
"""Parameters that ask for an engine of their own."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """On a GPU machine these are GPU tests; those of one engine stay together when tests are spread over processes."""
    for item in items:
        if "tests/engine" not in str(item.path):
            continue
        if cpu_mode.is_gpu_present():
            item.add_marker("gpu")
        callspec = getattr(item, "callspec", None)
        engine = [str(callspec.params[name]) for name in _ENGINES if name in callspec.params] if callspec else []
        item.add_marker(pytest.mark.xdist_group("-".join([item.path.stem, *engine])))


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Folder of a model by name: one of the random ones, made when first asked for, or ``tinygui``, the trained one."""
    made: dict[str, Path] = {"tinygui": EXAMPLE_MODEL}

    def get(name: str) -> Path:
        if name not in made:
            made[name] = MAKERS[name](tmp_path_factory.mktemp("models") / name, wide=cpu_mode.is_gpu_present())
        return made[name]

    return get


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the file's engine writes what it prunes."""
    return tmp_path_factory.mktemp("trace")


@pytest.fixture(scope="module")
def file_engine(request: pytest.FixtureRequest, checkpoint: Callable[[str], Path], trace: Path) -> Iterator[TestEngine]:
    """One engine for all tests of a file, with the arguments that the file calls ``ENGINE``."""
    arguments = dict(request.module.ENGINE)
    config = {"trace_dir": str(trace), **arguments.pop("policy_config", {})}
    with running_engine(checkpoint("qwen2_5_vl"), policy_config=config, **arguments) as engine:
        yield engine


@pytest.fixture
def engine(file_engine: TestEngine) -> TestEngine:
    """The file's engine with an empty tree."""
    file_engine.flush()
    assert file_engine.stats()["num_used_pool_tokens"] == 0
    return file_engine
