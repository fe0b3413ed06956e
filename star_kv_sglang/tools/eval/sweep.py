"""One model on several benchmarks under several policies and budgets, each on a server of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from star_kv_sglang.tools.eval.errors import DataError, EvalError

FULL: Final = "full"

# The two levels of AndroidControl are the same files.
_DATA_FOLDERS: Final = {
    "android-control-high": "android-control",
    "android-control-low": "android-control",
}


@dataclass(frozen=True, slots=True)
class Configuration:
    """A server to measure.

    Attributes:
        label: names its folder and its row.
        arguments: the flags that make it, for ``star-kv serve``.
    """

    label: str
    arguments: tuple[str, ...]


def configurations(policies: Sequence[str], budgets: Sequence[float]) -> list[Configuration]:
    """The full cache first, then every policy at every budget, labelled like ``star-20`` (percent kept).

    Raises:
        EvalError: a budget is not in (0, 1].
    """
    wrong = [budget for budget in budgets if not 0 < budget <= 1]
    if wrong:
        raise EvalError(
            f"--budgets {wrong[0]:g} must be in (0, 1]: the share of visual tokens to keep, for example 0.2"
        )
    made = [Configuration(FULL, ("--kv-policy", FULL))]
    for policy in policies:
        if policy != FULL:
            made += [
                Configuration(f"{policy}-{100 * budget:g}", ("--kv-policy", policy, "--kv-budget", f"{budget:g}"))
                for budget in budgets
            ]
    return made


def data_folder(root: Path, benchmark: str) -> Path:
    """Where a benchmark lies under the folder of all data: a folder of its name.

    Raises:
        DataError: it is not there.
    """
    folder = root / _DATA_FOLDERS.get(benchmark, benchmark)
    if not folder.is_dir():
        raise DataError(f"{folder} does not exist; put {benchmark} there, or leave it out of --benchmarks")
    return folder
