"""An SGLang plugin for tests: its scheduler process fails where a file says, from the next call on.

The file that INJECTED_FAULTS names holds one word: a place of ``PLACES``, ``nan``, ``room`` (no memory is left to score
the last prompt of a batch), ``diverge`` (rank 1 of several sees other distances), or nothing.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import pkgutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

_OPS = "kernel_ops.TritonOps" if torch.cuda.is_available() else "reference_ops.ReferenceOps"
PLACES = {
    "frames": ("star_kv_sglang.engine.records", "frames_of_request"),
    "plan": ("star_kv_sglang.engine.scoring", "plan_request"),
    "rows": ("star_kv_sglang.engine.observer", "rows_of"),
    "norms": ("star_kv_sglang.engine.observer.Observer", "_record_norms"),
    "queries": ("star_kv_sglang.engine.observer.Observer", "_score_keys"),
    "score": ("star_kv_sglang.engine.scoring", "without_nan"),
    "choose": ("star_kv_sglang.engine.scoring", "choose"),
    "prune": ("star_kv_sglang.engine.pruning", "prune_path"),
    "move": ("star_kv_sglang.engine.compaction", "prune_targets"),
    "compact": (f"star_kv_sglang.triton_ops.{_OPS}", "compact"),
    "register": ("star_kv_sglang.cache.radix_cache.StarRadixCache", "register_path"),
    "count": ("star_kv_sglang.engine.stats.KeptByAge", "note"),
    "tell": ("star_kv_sglang.engine.telemetry.Telemetry", "_tell"),
    "budget": ("star_kv_sglang.engine.tree_budget", "tree_quotas"),
}


def wanted() -> str:
    """What is to fail now."""
    return Path(os.environ["INJECTED_FAULTS"]).read_text(encoding="utf-8").strip()


def register() -> None:
    """Wrap every place where a fault can be injected; called by SGLang in each of its processes, and in the test's."""
    if multiprocessing.parent_process() is None:
        return
    for word, (place, name) in PLACES.items():
        home = pkgutil.resolve_name(place)
        wrapped = failing(word, getattr(home, name))
        setattr(home, name, staticmethod(wrapped) if word == "compact" else wrapped)
    module = importlib.import_module("star_kv_sglang.engine.scoring")
    module.Scoring._observation = spoiled(module.Scoring._observation)
    module.within_room = without_room(module.within_room)


def failing(word: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, which raises while the file holds ``word``."""

    def call(*args: Any, **kwargs: Any) -> Any:
        if wanted() == word:
            raise ValueError(f"injected into {word}")
        return function(*args, **kwargs)

    return call


def spoiled(observe: Callable[..., Any]) -> Callable[..., Any]:
    """What the scorer sees, one number of which is none while the file holds ``nan``."""
    from sglang.srt.distributed.parallel_state import get_tp_group

    def call(*args: Any, **kwargs: Any) -> Any:
        seen = observe(*args, **kwargs)
        if wanted() == "nan":
            seen.attention[1, 0, 5] = torch.nan
        if wanted() == "diverge" and get_tp_group().rank_in_group == 1:
            seen.frame_norms.neg_()
        return seen

    return call


def without_room(fit: Callable[..., list[Any]]) -> Callable[..., list[Any]]:
    """What fits into the memory for scoring: the last prompt of a batch does not while the file holds ``room``."""

    def call(requests: Sequence[Any], room: int) -> list[Any]:
        fitting = fit(requests, room)
        if wanted() == "room" and fitting[-1].layout.window:
            fitting[-1] = replace(fitting[-1], left_whole=True)
        return fitting

    return call
