"""What the engine tests share: the checkpoints, and what they are on a machine with a GPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from star_kv_sglang import cpu_mode
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
