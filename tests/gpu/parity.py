"""Parity of engines on one GPU: graphs, overlap, page sizes, chunks and dtypes, each against its reference.

    python tests/gpu/parity.py --out DIR [--jobs 4] [--only WORDS]     the table: DIR/parity.csv and DIR/parity.md
    python tests/gpu/parity.py --reference FILE                        what the CPU engine keeps; needs no GPU

Every engine holds the same conversations (`tests/gpu/scenario.py`) in a process of its own, under SGLang's leak checks.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from torch.cuda import device_count

from star_kv_sglang.tools.bench.serve.machine import describe
from tests.models.checkpoints import EXAMPLE_MODEL

CPU_REFERENCE = Path(__file__).with_name("cpu_choices.json.gz")
STOCK, CPU = "stock", "cpu"
_TIMEOUT_S = 280


@dataclass(frozen=True)
class Setup:
    """One engine of the table.

    Attributes:
        policy: ``stock`` (plugin not loaded), ``full``, or a budget of ``star``.
        reference: Name of the engine that it is compared with; empty for those that are only references.
        exact: PyTorch's operators in float32, without graphs.
        mixed: Prefills run beside decoding rows, in one batch.
        kv: Dtype of the KV cache, where it is not the model's.
        ranks: Tensor parallel ranks, a GPU each.
    """

    policy: str
    dtype: str = "bfloat16"
    page_size: int = 1
    graph: bool = True
    overlap: bool = True
    chunk: int | None = None
    reference: str = ""
    exact: bool = False
    mixed: bool = False
    kv: str = ""
    ranks: int = 1

    @property
    def name(self) -> str:
        """What tells it from the others."""
        words = [self.policy, self.dtype, f"p{self.page_size}", "graph" if self.graph else "eager"]
        words += ["" if self.overlap else "no-overlap", f"chunk{self.chunk}" if self.chunk else ""]
        words += ["mixed"] if self.mixed else []
        words += [self.kv, f"tp{self.ranks}" if self.ranks > 1 else ""]
        return " ".join(word for word in words if word)

    def arguments(self, trace: Path) -> dict[str, Any]:
        """Arguments of the engine."""
        given: dict[str, Any] = {"page_size": self.page_size, "max_total_tokens": 24_576, "max_running_requests": 8}
        if not self.exact:
            given["dtype"] = self.dtype
        if not self.graph:
            given["disable_cuda_graph"] = True
        if not self.overlap:
            given["disable_overlap_schedule"] = True
        if self.chunk:
            given["chunked_prefill_size"] = self.chunk
        if self.mixed:
            given["enable_mixed_chunk"] = True
        if self.kv:
            given["kv_cache_dtype"] = self.kv
        if self.ranks > 1:
            given["tp_size"] = self.ranks
        if self.policy == "full":
            given["kv_policy"] = "full"
        elif self.policy != STOCK:
            given |= {"kv_policy": "star", "kv_budget": float(self.policy), "policy_config": {"trace_dir": str(trace)}}
        return given


def _group(dtype: str, page_size: int, chunk: int | None, *policies: str, **other: Any) -> list[Setup]:
    """Stock and policies with graphs and overlap; what keeps everything is compared with stock."""
    common: dict[str, Any] = {"dtype": dtype, "page_size": page_size, "chunk": chunk, **other}
    stock = Setup(STOCK, **common)
    rows = [Setup(one, **common, reference=stock.name if one in ("full", "1.0") else "") for one in policies]
    return [stock, *rows]


def _like(group: Sequence[Setup], policy: str = "0.2", **other: Any) -> Setup:
    """An engine of a group, the pruning one if not said otherwise, in another mode, compared with it."""
    base = next(one for one in group if one.policy == policy)
    return Setup(**{**asdict(base), **other, "reference": base.name})


def recorded_setup() -> Setup:
    """The engine whose choices are recorded on a CPU."""
    return Setup("0.2", dtype="float32", graph=False, exact=True)


def table() -> list[Setup]:
    """All engines; the slow starters first."""
    half = _group("float16", 1, None, "1.0", "0.2")
    plain = _group("bfloat16", 1, None, "full", "1.0", "0.2")
    chunked = _group("bfloat16", 1, 256, "1.0", "0.2")
    pages = _group("bfloat16", 16, None, "1.0", "0.2")
    large = _group("bfloat16", 64, 256, "1.0", "0.2")
    eight = _group("bfloat16", 1, None, "1.0", "0.2", kv="fp8_e4m3")
    exact = replace(recorded_setup(), reference=CPU)
    return [
        *half,
        _like(half, graph=False, overlap=False),
        _like(half, STOCK, mixed=True),
        _like(half, mixed=True),
        exact,
        *plain,
        _like(plain, graph=False),
        _like(plain, overlap=False),
        *chunked,
        _like(chunked, graph=False, overlap=False),
        _like(chunked, STOCK, mixed=True),
        _like(chunked, mixed=True),
        *pages,
        _like(pages, graph=False, overlap=False),
        _like(pages, mixed=True),
        *large,
        _like(large, graph=False, overlap=False),
        *eight,
        _like(eight, graph=False, overlap=False),
        *_two_ranks(),
    ]


def _two_ranks() -> list[Setup]:
    """Engines of two GPUs; in float32 they keep what one does, otherwise sums are rounded in another order."""
    if device_count() < 2:
        return []
    exact = replace(recorded_setup(), reference=CPU, ranks=2)
    groups = [_group("bfloat16", 1, None, "full", "1.0", "0.2", ranks=2)]
    groups += [_group("bfloat16", size, 256, "1.0", "0.2", ranks=2) for size in (16, 64)]
    return [exact, *(row for group in groups for row in (*group, _like(group, graph=False, overlap=False)))]


def run_one(setup: Setup, out: Path) -> None:
    """Start this engine, play the scenario and write what it said and kept."""
    if setup.policy == STOCK:
        os.environ["SGLANG_PLUGINS"] = "mixed_steps"  # the counter alone
    from star_kv_sglang import cpu_mode

    if not cpu_mode.is_gpu_present():
        cpu_mode.enable()
    from tests.engine.harness import running_engine
    from tests.gpu.mixed_steps import counted_mixed_steps
    from tests.gpu.scenario import as_json, kept_tokens, play

    with tempfile.TemporaryDirectory() as folder:
        trace, steps = Path(folder), Path(folder) / "mixed_steps"
        started = time.monotonic()
        with (
            counted_mixed_steps(steps),
            running_engine(EXAMPLE_MODEL, exact=setup.exact, **setup.arguments(trace)) as engine,
        ):
            start_s = time.monotonic() - started
            said = play(engine)
            run_s = time.monotonic() - started - start_s
            stats = {} if setup.policy in (STOCK, "full") else engine.run(engine.idle_stats())
        num_mixed = len(steps.read_text(encoding="utf-8").splitlines())
        more = {"start_s": start_s, "run_s": run_s, "stats": stats, "num_mixed_steps": num_mixed}
        out.write_text(as_json(said, kept_tokens(trace), **more), encoding="utf-8")


@dataclass(frozen=True)
class Row:
    """A line of the table.

    Attributes:
        same_texts: Requests whose tokens are the reference's, of all.
        max_dlogprob: Largest difference of a generated token's log-probability, up to the first other token.
        same_hits: Whether every request found as many tokens in the tree.
        same_kept: Layers' choices that are the reference's, of all; empty where nothing is pruned.
        leaks: "none", or what SGLang's checks or the census said.
        num_mixed_steps: Steps in which rows, pruned ones where anything is pruned, decoded beside a prefill.
    """

    engine: str
    reference: str
    same_texts: str = ""
    max_dlogprob: float | None = None
    same_hits: bool | None = None
    same_kept: str = ""
    leaks: str = "none"
    num_prunes: int = 0
    num_mixed_steps: int = 0
    start_s: float = 0.0
    run_s: float = 0.0


def compare(setup: Setup, mine: dict[str, Any], reference: dict[str, Any] | None) -> Row:
    """One row of two runs."""
    row: dict[str, Any] = {
        "engine": setup.name,
        "reference": setup.reference,
        "num_prunes": mine.get("stats", {}).get("num_prunes", 0),
        "num_mixed_steps": mine.get("num_mixed_steps", 0),
        "start_s": round(mine["start_s"], 1),
        "run_s": round(mine["run_s"], 1),
    }
    if reference is None:
        return Row(**row)
    pairs = list(zip(mine["said"], reference["said"], strict=True))
    worst = 0.0
    for one, other in pairs:
        for token, also, logprob, expected in zip(
            one["tokens"], other["tokens"], one["logprobs"], other["logprobs"], strict=bool(one["logprobs"])
        ):
            worst = max(worst, abs(logprob - expected))
            if token != also:
                break
    same = sum(one["tokens"] == other["tokens"] for one, other in pairs)
    row |= {
        "same_texts": f"{same}/{len(pairs)}",
        "max_dlogprob": worst,
        "same_hits": all(one["cached"] == other["cached"] for one, other in pairs),
    }
    if mine["kept"]:
        layers = [
            (kept, expected)
            for name in sorted(set(mine["kept"]) | set(reference["kept"]))
            for kept, expected in zip(mine["kept"].get(name, [[]]), reference["kept"].get(name, [[-1]]), strict=False)
        ]
        row["same_kept"] = f"{sum(kept == expected for kept, expected in layers)}/{len(layers)}"
    return Row(**row)


def _run_all(setups: Sequence[Setup], out: Path, jobs: int, seconds: float) -> dict[str, dict[str, Any] | str]:
    """Results by name; text for an engine that failed, or that would have begun after these seconds."""
    end = time.monotonic() + seconds

    def run(setup: Setup) -> dict[str, Any] | str:
        if time.monotonic() > end:
            return "not run: the time was over"
        file = out / f"{setup.name.replace(' ', '_')}.json"
        command = [sys.executable, __file__, "--one", json.dumps(asdict(setup)), "--out", str(file)]
        with file.with_suffix(".log").open("wb") as log:
            try:
                done = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, timeout=_TIMEOUT_S, check=False)
            except subprocess.TimeoutExpired:
                return f"not ready after {_TIMEOUT_S} s"
        if not file.exists():
            return f"failed with status {done.returncode}: see {file.with_suffix('.log').name}"
        result: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return result

    with ThreadPoolExecutor(jobs) as pool:
        return dict(zip((setup.name for setup in setups), pool.map(run, setups), strict=True))


def report(setups: Sequence[Setup], results: dict[str, dict[str, Any] | str]) -> list[Row]:
    """The table's rows."""
    rows = []
    with gzip.open(CPU_REFERENCE, "rt", encoding="utf-8") as file:
        known: dict[str, dict[str, Any] | str] = {**results, CPU: json.load(file)}
    for setup in setups:
        mine = results[setup.name]
        other = known.get(setup.reference) if setup.reference else None
        if isinstance(mine, str):
            rows.append(Row(setup.name, setup.reference, leaks=mine))
        else:
            rows.append(compare(setup, mine, other if isinstance(other, dict) else None))
    return rows


def write(rows: Sequence[Row], out: Path) -> None:
    """The table as CSV, with the machine in each row, and as Markdown."""
    machine = asdict(describe("/".join(EXAMPLE_MODEL.parts[-2:])))
    names = [one.name for one in fields(Row)]
    values = [[getattr(row, name) for name in names] for row in rows]
    with (out / "parity.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([[*machine, *names], *([*machine.values(), *line] for line in values)])
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    lines += ["| " + " | ".join(_cell(value) for value in line) + " |" for line in values]
    (out / "parity.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="folder for the table and the engines' logs")
    parser.add_argument("--jobs", type=int, default=4, help="engines at the same time")
    parser.add_argument("--only", default="", help="only engines with one of these in their name, and their references")
    parser.add_argument("--seconds", type=float, default=math.inf, help="start no engine later than this")
    parser.add_argument("--reference", type=Path, help="write the CPU engine's choices to this file")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        run_one(Setup(**json.loads(given.one)), given.out)
        return
    if given.reference:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "result.json"
            run_one(recorded_setup(), file)
            with gzip.open(given.reference, "wt", encoding="utf-8") as packed:
                packed.write(file.read_text(encoding="utf-8"))
        return
    if given.out is None:
        parser.error("--out FOLDER is needed")
    given.out.mkdir(parents=True, exist_ok=True)
    words = given.only.split(",")
    setups = [one for one in table() if any(word in one.name for word in words)]
    names = {one.reference for one in setups} - {one.name for one in setups}
    setups = [one for one in table() if one.name in names] + setups
    rows = report(setups, _run_all(setups, given.out, given.jobs, given.seconds))
    write(rows, given.out)
    sys.stdout.write((given.out / "parity.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
