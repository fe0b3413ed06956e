"""`star-kv bench serve`: the policies against stock SGLang, on full servers."""

from __future__ import annotations

import math
import shlex
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from star_kv_sglang.tools.bench.serve.context import Sizes
    from star_kv_sglang.tools.bench.serve.results import Results
    from star_kv_sglang.tools.bench.serve.runner import Plan

_PHASES = "decode,branches,ttft,turns"
_FILE_WIDTH = 160
"""Columns of the report where it does not go to a terminal."""


def serve(
    phases: Annotated[str, typer.Option(help="Measurements, comma-separated.")] = _PHASES,
    policies: Annotated[
        str,
        typer.Option(
            help="Among stock, full, star and, e.g., 'star 0.4', in order; stock is always the first. 'stock again' is "
            "a second server of it, which shows how much two equal servers differ."
        ),
    ] = "full,star",
    stock: Annotated[
        bool, typer.Option(help="Measure stock too; without it where another process does, on another GPU.")
    ] = True,
    budgets: Annotated[str, typer.Option(help="Budgets of star, comma-separated.")] = "0.2",
    brief: Annotated[str, typer.Option(help="Policies of which decoding is measured at one point only.")] = "",
    quick: Annotated[bool, typer.Option("--quick", help="Fewer batch sizes, repeats and turns.")] = False,
    shape: Annotated[str, typer.Option(help="Model with random weights: 7b or tiny.")] = "7b",
    model_path: Annotated[str | None, typer.Option(help="Serve this model instead, with its weights.")] = None,
    screen: Annotated[str, typer.Option(help="Width x height of the screenshots.")] = "1920x1080",
    histories: Annotated[str | None, typer.Option(help="decode: screenshots in a branch.")] = None,
    batches: Annotated[str | None, typer.Option(help="decode: branches at the same time.")] = None,
    window: Annotated[float | None, typer.Option(min=0.1, help="decode: seconds that are measured.")] = None,
    branch_screens: Annotated[int | None, typer.Option(min=1, help="branches: screenshots in a branch.")] = None,
    fixed_pool: Annotated[int, typer.Option(min=1, help="branches: slots of the pool.")] = 150_000,
    ttft_turns: Annotated[int | None, typer.Option(min=1, help="ttft: turns of a conversation.")] = None,
    ttft_repeats: Annotated[int | None, typer.Option(min=1, help="ttft: conversations.")] = None,
    turns_branches: Annotated[int | None, typer.Option(min=1, help="turns: branches.")] = None,
    turns_turns: Annotated[int | None, typer.Option(min=2, help="turns: turns of a branch.")] = None,
    turns_shared: Annotated[int | None, typer.Option(min=1, help="turns: how many of them are shared.")] = None,
    answer_tokens: Annotated[int | None, typer.Option(min=2, help="Length of an answer.")] = None,
    max_seconds: Annotated[float | None, typer.Option(min=1, help="Longest time of a phase.")] = None,
    total_seconds: Annotated[
        float | None, typer.Option(min=1, help="Longest time of the run; what does not begin in it is left out.")
    ] = None,
    side_by_side: Annotated[
        bool, typer.Option("--side-by-side", help="ttft: servers of all policies at the same time, which take turns.")
    ] = False,
    pool: Annotated[int | None, typer.Option(min=1, help="Slots of the other phases' pools; SGLang chooses.")] = None,
    engine_args: Annotated[str, typer.Option(help="Further flags for every server, as one string.")] = "",
    port: Annotated[int | None, typer.Option(help="The servers' port; a free one by default.")] = None,
    start_timeout: Annotated[float, typer.Option(min=1, help="Seconds a server may take to start.")] = 400.0,
    csv: Annotated[Path | None, typer.Option(help="Default: benchmarks/serve_<gpu>.csv")] = None,
    work: Annotated[Path, typer.Option(help="Folder for the model, screenshots and logs.")] = Path("build/bench_serve"),
    from_csv: Annotated[Path | None, typer.Option(help="Measure nothing: report the last run of this file.")] = None,
    all_runs: Annotated[
        bool, typer.Option("--all-runs", help="With --from-csv: every figure, from the last run that compared it.")
    ] = False,
) -> None:
    """Measure decoding, branches in a fixed pool, time to first token and turns, for every policy in the same run.

    Rows are appended to the CSV as soon as they exist. Exits 1 when a measurement failed.
    """
    from rich.console import Console

    console = Console()
    if not console.is_terminal:
        console = Console(width=_FILE_WIDTH)
    if from_csv is not None:
        _report(console, from_csv, all_runs=all_runs)
        return
    given: dict[str, object] = {
        "histories": _numbers("--histories", histories),
        "batches": _numbers("--batches", batches),
        "window_s": window,
        "branch_screens": branch_screens,
        "ttft_turns": ttft_turns,
        "ttft_repeats": ttft_repeats,
        "turns_branches": turns_branches,
        "turns_turns": turns_turns,
        "turns_shared": turns_shared,
        "answer_tokens": answer_tokens,
        "max_seconds": max_seconds,
    }
    from star_kv_sglang.tools.bench.serve.checkpoint import SHAPES, random_model
    from star_kv_sglang.tools.bench.serve.machine import describe, gpu_used_gib, short_name
    from star_kv_sglang.tools.bench.serve.results import Results
    from star_kv_sglang.tools.bench.serve.runner import PHASES, Plan
    from star_kv_sglang.tools.bench.serve.screens import write_screens
    from star_kv_sglang.tools.bench.serve.server import STOCK, parse_policies

    names = [name.strip() for name in phases.split(",") if name.strip()]
    unknown = sorted(set(names) - set(PHASES))
    if unknown or not names:
        wrong = ", ".join(unknown) or "nothing"
        raise typer.BadParameter(f"{wrong}: choose among {', '.join(PHASES)}", param_hint="--phases")
    if shape not in SHAPES:
        raise typer.BadParameter(f"{shape!r}: choose among {', '.join(SHAPES)}", param_hint="--shape")
    work = work.resolve()
    model = random_model(work, shape) if model_path is None else ["--model-path", model_path]
    machine = describe(model_path or f"Qwen2.5-VL {shape}, random weights")
    path = csv or Path("benchmarks") / f"serve_{short_name(machine.gpu)}.csv"
    chosen = [policy for policy in parse_policies(policies, budgets) if stock or policy.label != STOCK]
    labels = [label.strip() for label in brief.split(",") if label.strip()]
    strangers = sorted(set(labels) - {policy.label for policy in chosen})
    if strangers:
        raise typer.BadParameter(f"{', '.join(strangers)}: not among --policies", param_hint="--brief")
    plan = Plan(
        policies=chosen,
        phases=names,
        sizes=_sizes(quick, {name: value for name, value in given.items() if value is not None}),
        screens=write_screens(work / f"screens_{screen}", screen_size(screen)),
        model_arguments=model,
        engine_arguments=shlex.split(engine_args),
        pool=pool,
        fixed_pool=fixed_pool,
        work=work,
        port=port,
        start_timeout_s=start_timeout,
        brief=labels,
        total_seconds=math.inf if total_seconds is None else total_seconds,
        side_by_side=side_by_side,
    )
    problems = _measure(console, plan, Results(path, machine, gpu_used_gib))
    _report(console, path)
    for problem in problems:
        console.print(f"[red]failed:[/] {problem}", highlight=False)
    if problems:
        raise typer.Exit(1)


def _measure(console: Console, plan: Plan, results: Results) -> list[str]:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    from star_kv_sglang.tools.bench.serve.runner import Run

    text = TextColumn("{task.description}")
    columns = (SpinnerColumn(), text, BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("", total=len(plan.policies) * len(plan.phases))
        run = Run(
            plan=plan,
            results=results,
            say=lambda line: progress.update(task, description=line),
            advance=lambda: progress.advance(task),
            problems=[],
        )
        run.measure()
    return run.problems


def _report(console: Console, csv: Path, *, all_runs: bool = False) -> None:
    """Tables for the terminal, and the plot beside the CSV."""
    from star_kv_sglang.tools.bench.serve.plot import draw
    from star_kv_sglang.tools.bench.serve.results import read_runs
    from star_kv_sglang.tools.bench.serve.summary import comparison_table, newest, targets_table

    runs = read_runs(csv) if all_runs else read_runs(csv)[-1:]
    figures = newest(run.figures for run in runs)
    console.print(comparison_table(figures))
    console.print(targets_table(figures))
    plot = csv.with_suffix(".png")
    try:
        draw(figures, plot, title="; ".join(dict.fromkeys(run.machine for run in runs)))
    except ModuleNotFoundError as error:
        console.print(f"{plot} is not drawn: {error}. Install matplotlib and run star-kv bench serve --from-csv {csv}")
    else:
        console.print(f"Written: {csv}, {plot}")


def _sizes(quick: bool, given: dict[str, object]) -> Sizes:
    from star_kv_sglang.tools.bench.serve.context import QUICK, Sizes

    sizes = QUICK if quick else Sizes()
    return replace(sizes, **given)  # type: ignore[arg-type]


def _numbers(option: str, text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    words = [word.strip() for word in text.split(",") if word.strip()]
    if not words or not all(word.isdigit() and int(word) > 0 for word in words):
        raise typer.BadParameter(f"{text!r}: give numbers from 1, separated by commas", param_hint=option)
    return tuple(sorted(int(word) for word in words))


def screen_size(text: str) -> tuple[int, int]:
    """Width and height in pixels of ``1920x1080``."""
    width, _, height = text.partition("x")
    if not (width.isdigit() and height.isdigit() and int(width) >= 56 and int(height) >= 56):
        raise typer.BadParameter(f"{text!r}: give a size such as 1920x1080, at least 56x56", param_hint="--screen")
    return int(width), int(height)
