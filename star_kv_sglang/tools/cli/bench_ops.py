"""`star-kv bench ops`: time and bandwidth of every op."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def ops(
    shape: Annotated[str, typer.Option(help="Model and turn to measure on; see bench/shapes.py.")] = "qwen2.5-vl-7b",
    csv: Annotated[Path | None, typer.Option(help="Append the rows to this CSV.")] = None,
    tests: Annotated[
        Path | None, typer.Option(help="JUnit report of a run of tests/ops on this machine; without it they run first.")
    ] = None,
) -> None:
    """Measure every op on this GPU against its bytes, the copy bandwidth and its torch reference.

    An op whose tests are not green is not reported, and the command exits 1.
    """
    import torch
    from rich.console import Console
    from rich.progress import track

    from star_kv_sglang.tools.bench.gate import Verdict, read_report, run_tests
    from star_kv_sglang.tools.bench.op_cases import build_cases
    from star_kv_sglang.tools.bench.op_report import append_csv, as_table, measure
    from star_kv_sglang.tools.bench.shapes import SHAPES
    from star_kv_sglang.tools.bench.timing import copy_bandwidth

    console = Console(width=140)
    if shape not in SHAPES:
        raise typer.BadParameter(f"{shape!r} is not a shape; choose one of {', '.join(SHAPES)}")
    if not torch.cuda.is_available():
        console.print("star-kv bench ops needs an NVIDIA GPU; torch sees none")
        raise typer.Exit(2)
    cases = build_cases(SHAPES[shape])
    try:
        verdicts = read_report(tests) if tests else run_tests(case.tests for case in cases)
    except (ValueError, FileNotFoundError) as error:
        console.print(str(error))
        raise typer.Exit(2) from error
    green = [case for case in cases if verdicts.get(case.tests, Verdict()).green]
    ceiling = copy_bandwidth()
    rows = [measure(case, shape, ceiling) for case in track(green, description="ops", console=console)]
    console.print(as_table(rows))
    if csv is not None:
        append_csv(csv, rows)
    red = [case for case in cases if case not in green]
    for case in red:
        console.print(f"{case.name} is not reported: {case.tests} is {verdicts.get(case.tests, 'missing')}")
    if red:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(ops)
