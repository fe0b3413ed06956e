"""An SGLang plugin for tests: its scheduler process fails where a file says, from the next call on.

The file that INJECTED_FAULTS names holds one word: ``score``, ``choose``, ``prune``, ``move``, ``budget``, ``nan``, or
nothing.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

PLACES = {
    "score": ("star_kv_sglang.engine.policy", "without_nan"),
    "choose": ("star_kv_sglang.engine.policy", "choose"),
    "prune": ("star_kv_sglang.engine.policy", "prune_path"),
    "move": ("star_kv_sglang.engine.prune", "prune_targets"),
    "budget": ("star_kv_sglang.engine.tree_budget", "tree_quotas"),
}


def wanted() -> str:
    """What is to fail now."""
    return Path(os.environ["INJECTED_FAULTS"]).read_text(encoding="utf-8").strip()


def register() -> None:
    """Wrap every place where a fault can be injected; called by SGLang in each of its processes, and in the test's."""
    if multiprocessing.parent_process() is None:
        return
    for word, (module, name) in PLACES.items():
        home = importlib.import_module(module)
        setattr(home, name, failing(word, getattr(home, name)))
    policy = importlib.import_module("star_kv_sglang.engine.policy").PolicyEngine
    policy._observation = spoiled(policy._observation)


def failing(word: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, which raises while the file holds ``word``."""

    def call(*args: Any, **kwargs: Any) -> Any:
        if wanted() == word:
            raise ValueError(f"injected into {word}")
        return function(*args, **kwargs)

    return call


def spoiled(observe: Callable[..., Any]) -> Callable[..., Any]:
    """What the scorer sees, one number of which is none while the file holds ``nan``."""

    def call(*args: Any, **kwargs: Any) -> Any:
        seen = observe(*args, **kwargs)
        if wanted() == "nan":
            seen.attention[1, 0, 5] = torch.nan
        return seen

    return call
