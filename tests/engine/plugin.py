"""One more plugin for the SGLang processes that a test starts."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def sglang_plugin(module: str) -> Iterator[None]:
    """Processes that are spawned in the block find a plugin on the import path that they inherit.

    Args:
        module: Of the tests, with a function ``register``.
    """
    name = module.rpartition(".")[2]
    with tempfile.TemporaryDirectory() as folder:
        metadata = Path(folder) / f"{name}-0.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0\n", encoding="utf-8")
        (metadata / "entry_points.txt").write_text(
            f"[sglang.srt.plugins]\n{name} = {module}:register\n", encoding="utf-8"
        )
        sys.path.insert(0, folder)
        try:
            yield
        finally:
            sys.path.remove(folder)
