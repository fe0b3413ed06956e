"""The scripts behind the documentation, as modules."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType

from tests.architecture.imports import ROOT


def script(name: str) -> ModuleType:
    """A module of scripts/; they import one another by name."""
    folder = str(ROOT / "scripts")
    if folder not in sys.path:
        sys.path.append(folder)
    return importlib.import_module(name)
