"""Measure the op cases, print them, and append them to a CSV that says where they come from."""

from __future__ import annotations

import platform
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import torch
import triton
from rich.table import Table

from star_kv_sglang import __version__
from star_kv_sglang.tools.bench.append import append_rows
from star_kv_sglang.tools.bench.timing import time_calls, time_eager
from star_kv_sglang.triton_ops.dispatch import get_ops

if TYPE_CHECKING:
    from pathlib import Path

    from star_kv_sglang.tools.bench.op_cases import OpCase


@dataclass(frozen=True)
class Measurement:
    """One row of the CSV: microseconds of one call, bandwidths in GB/s; `reference_us` is the torch reference."""

    op: str
    shape: str
    unit: str
    p20_us: float
    p50_us: float
    p80_us: float
    megabytes: float
    bandwidth: float
    copy_bandwidth: float
    share_of_copy: float
    reference_us: float
    target: str
    met: bool | None


def measure(case: OpCase, shape: str, copy_bandwidth: float) -> Measurement:
    """Time a case with the kernels and, once, with the reference."""
    times = time_calls(case.calls(get_ops("triton")))
    reference = time_eager(case.calls(get_ops("reference"))[0], repeats=3)
    bandwidth = case.num_bytes / (times.p50 * 1e-6)
    share = bandwidth / copy_bandwidth
    target, met = "", None
    if case.target_bandwidth is not None:
        target, met = f">= {case.target_bandwidth:.0%} of copy", share >= case.target_bandwidth
    elif case.target_us is not None:
        target, met = f"<= {case.target_us:g} us", times.p50 <= case.target_us
    return Measurement(
        op=case.name,
        shape=shape,
        unit=case.unit,
        p20_us=round(times.p20, 2),
        p50_us=round(times.p50, 2),
        p80_us=round(times.p80, 2),
        megabytes=round(case.num_bytes / 1e6, 2),
        bandwidth=round(bandwidth / 1e9, 1),
        copy_bandwidth=round(copy_bandwidth / 1e9, 1),
        share_of_copy=round(share, 3),
        reference_us=round(reference.p50, 1),
        target=target,
        met=met,
    )


def environment() -> dict[str, str]:
    """GPU and versions that a measurement belongs to."""
    properties = torch.cuda.get_device_properties(0)
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "gpu": properties.name,
        "torch": torch.__version__,
        "triton": triton.__version__,
        "cuda": str(torch.version.cuda),
        "python": platform.python_version(),
        "star_kv": __version__,
    }


def append_csv(path: Path, rows: list[Measurement]) -> None:
    """Append rows with their environment; the header is written with the first."""
    where = environment()
    append_rows(path, [{**where, **asdict(row)} for row in rows])


def as_table(rows: list[Measurement]) -> Table:
    """The rows for a terminal."""
    table = Table(title=f"ops on {environment()['gpu']}, copy {rows[0].copy_bandwidth:g} GB/s" if rows else "ops")
    for heading in ("op", "per", "us p50", "p20..p80", "MB", "GB/s", "of copy", "torch us", "target", "met"):
        table.add_column(heading, justify="left" if heading in ("op", "per", "target") else "right", no_wrap=True)
    for row in rows:
        table.add_row(
            row.op,
            row.unit,
            f"{row.p50_us:.1f}",
            f"{row.p20_us:.1f}..{row.p80_us:.1f}",
            f"{row.megabytes:.1f}",
            f"{row.bandwidth:.0f}",
            f"{row.share_of_copy:.0%}",
            f"{row.reference_us:.0f}",
            row.target,
            "" if row.met is None else "yes" if row.met else "no",
        )
    return table
