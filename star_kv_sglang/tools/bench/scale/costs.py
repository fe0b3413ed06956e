"""What a turn costs a server, from the rows that were measured."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Final

import numpy as np

from star_kv_sglang.errors import ConfigError
from star_kv_sglang.tools.bench.serve.server import STOCK

SCREEN_TOKENS: Final = 2_691
"""Visual tokens of a screenshot of 1920 x 1080, which all rows are of."""
TEXT_TOKENS: Final = 14
"""Tokens of a measured turn beside its screenshot."""

BUDGETS: Final = {STOCK: 1.0, "star 0.2": 0.2}
"""Policies whose costs were measured, and the share of a screenshot that each keeps."""

_SGLANG: Final = "0.5.23"
_MODELS: Final = ("Qwen2.5-VL 7b, random weights", "7b")
_SCREEN: Final = "1920x1080"
_NUM_PARTS: Final = 3
"""Of a decode step's time."""

Row = Mapping[str, str]


@dataclass(frozen=True)
class Costs:
    """Seconds of one server with one GPU.

    Attributes:
        prefill_s: Of each new token, its share of the vision tower included.
        step_s: Of a decode step, whatever it computes.
        row_s: Of each request in it.
        live_token_s: Of each live token that it attends to.
        new_image_s: In which the API process can do nothing else, of a screenshot that it has not seen.
        image_again_s: Likewise, of one that it has.
        pool: Slots of the KV cache.
    """

    prefill_s: float
    step_s: float
    row_s: float
    live_token_s: float
    new_image_s: float
    image_again_s: float
    pool: int

    def decode_step_s(self, rows: int, live_tokens: float) -> float:
        """Seconds of one step."""
        return self.step_s + self.row_s * rows + self.live_token_s * live_tokens

    @classmethod
    def shipped(cls, gpu: str, policy: str) -> Costs:
        """Those of a GPU whose rows lie in the repository, as `measured` reads them.

        Raises:
            ConfigError: Nobody has measured them.
        """
        known = json.loads(files(__package__).joinpath("costs.json").read_text(encoding="utf-8"))
        if policy not in known.get(gpu, {}):
            there = ", ".join(f"{name} on {card}" for card, costs in known.items() for name in costs)
            raise ConfigError(
                f"costs of {policy} on {gpu} are not known, those of {there} are; --folder names your rows"
            )
        return cls(**known[gpu][policy])

    @classmethod
    def measured(cls, folder: Path, gpu: str, policy: str) -> Costs:
        """Costs of a policy's server.

        Decode steps are fitted: a fixed part, one for each request, one for each live token. A prefill is its kernels.
        What a lone prompt of new screenshots waits beyond them is the API process's work, and so is what a request
        waits whose screenshots are all cached.

        Args:
            folder: Of the CSV files.
            gpu: Their suffix, such as ``h100``.
            policy: ``stock`` or ``star 0.2``, as the rows name it.

        Raises:
            ConfigError: A file, or a row that is needed, is not there.
        """
        fixed, row, live = _fit_steps(_rows(folder / f"serve_{gpu}.csv"))
        fleet = MeasuredFleet.newest(_rows(folder / f"fleet_{gpu}.csv"), policy)
        prefill_s = _turn_kernels_s(_rows(folder / f"turn_{gpu}.csv")) / (SCREEN_TOKENS + TEXT_TOKENS)
        alone_s, screens = _lone_prompt(_rows(folder / f"group_{gpu}.csv"))
        return cls(
            prefill_s=prefill_s,
            step_s=fixed,
            row_s=row,
            live_token_s=live,
            new_image_s=max(alone_s / screens - prefill_s * SCREEN_TOKENS, 0.0),
            image_again_s=max(fleet.figures["cached_request_s_p50"] - fixed - row, 0.0) / fleet.turns,
            pool=int(fleet.figures["pool_slots"]),
        )


@dataclass(frozen=True, eq=False)
class MeasuredFleet:
    """A fleet that was measured, with its whole history.

    Attributes:
        branches, turns: Of it.
        figures: What was measured, by name.
        date: Of the run.
    """

    branches: int
    turns: int
    figures: Mapping[str, float]
    date: str

    @classmethod
    def newest(cls, rows: list[Row], policy: str) -> MeasuredFleet:
        """The policy's last one.

        Raises:
            ConfigError: There is none.
        """
        own = [row for row in rows if row["policy"] == policy and row["phase"] == "fleet" and row["partial"] != "True"]
        plain = [row for row in own if row["metric"] == "turns_per_s" and _is_plain(row)]
        if not plain:
            raise ConfigError(f"no fleet of {policy} with its whole history was measured: star-kv bench fleet")
        run = max(plain, key=lambda row: row["date"])
        found = {row["metric"]: float(row["value"]) for row in own if row["date"] == run["date"] and row["value"]}
        if "cached_request_s_p50" not in found:
            raise ConfigError(f"the fleet of {policy} of {run['date']} did not ask for a turn again")
        return cls(int(run["batch"]), int(run["note"].split()[0]), found, run["date"])


def _is_plain(row: Row) -> bool:
    """With its whole history, as bytes, nothing shared; stock with the flags that are best for it, others with none."""
    what, *more = row["note"].split("; ")
    return what.endswith("append") and (not more or (row["policy"] == STOCK and more[0].startswith("--")))


def _fit_steps(rows: list[Row]) -> tuple[float, float, float]:
    """Least squares over all measured steps: seconds of a step, of a request in it, of a live token."""
    steps = [row for row in rows if row["metric"] == "ms_per_step" and row["sglang"] == _SGLANG and row["value"]]
    steps = [row for row in steps if row["policy"] in BUDGETS and row["partial"] != "True"]
    if len(steps) < _NUM_PARTS:
        raise ConfigError("too few decode steps were measured: star-kv bench serve --phases decode")
    known = []
    for row in steps:
        batch, history = int(row["batch"]), int(row["history"])
        screens = round(history / (SCREEN_TOKENS + TEXT_TOKENS))
        pruned = SCREEN_TOKENS * screens * (1 - BUDGETS[row["policy"]])
        known.append((1.0, batch, batch * (history - pruned)))
    seconds = [float(row["value"]) / 1e3 for row in steps]
    fixed, row_s, live = np.linalg.lstsq(np.array(known), np.array(seconds), rcond=None)[0].tolist()
    return fixed, row_s, live


def _turn_kernels_s(rows: list[Row]) -> float:
    turns = [row for row in rows if row["policy"] == "full" and row["part"] == "turn" and row["sglang"] == _SGLANG]
    if not turns:
        raise ConfigError("no turn of stock was profiled: star-kv bench turn --against full")
    return float(max(turns, key=lambda row: row["date"])["kernel_us"]) / 1e6


def _lone_prompt(rows: list[Row]) -> tuple[float, int]:
    """Seconds until the first token of one answer to a prompt of new screenshots, and how many these are."""
    alone = [row for row in rows if row["metric"] == "first_tokens_s_p50" and row["batch"] == "1" and row["value"]]
    alone = [row for row in alone if _SCREEN in row["note"]]
    if not alone:
        raise ConfigError("no prompt was measured alone: star-kv bench group")
    row = max(alone, key=lambda row: row["date"])
    return float(row["value"]), int(row["note"].split()[0])


def _rows(file: Path) -> list[Row]:
    """All rows of the model that costs are of; a profile's rows name it shortly."""
    try:
        with file.open(newline="", encoding="utf-8") as opened:
            return [row for row in csv.DictReader(opened) if row["model"] in _MODELS]
    except FileNotFoundError:
        raise ConfigError(f"{file} is not there: costs are measured on a GPU first (docs/performance.md)") from None


def measured_fleets(folder: Path, gpu: str) -> dict[str, MeasuredFleet]:
    """The last fleet of each policy whose costs are known.

    Raises:
        ConfigError: One was not measured.
    """
    rows = _rows(folder / f"fleet_{gpu}.csv")
    return {policy: MeasuredFleet.newest(rows, policy) for policy in BUDGETS}
