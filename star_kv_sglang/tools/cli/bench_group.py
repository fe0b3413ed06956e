"""`star-kv bench group`: time until all answers of a group have begun."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer


def group(
    answers: Annotated[int, typer.Option(min=2, help="Answers of a group.")] = 8,
    screens: Annotated[int, typer.Option(min=1, help="Screenshots in a prompt.")] = 5,
    repeats: Annotated[int, typer.Option(min=1, help="Pairs of one answer and a group.")] = 6,
    budget: Annotated[float, typer.Option(help="Budget of star.")] = 0.2,
    screen: Annotated[str, typer.Option(help="Width x height of the screenshots.")] = "1920x1080",
    shape: Annotated[str, typer.Option(help="Model with random weights: 7b or tiny.")] = "7b",
    engine_args: Annotated[str, typer.Option(help="Further flags of the server, as one string.")] = "",
    start_timeout: Annotated[float, typer.Option(min=1, help="Seconds the server may take to start.")] = 400.0,
    csv: Annotated[Path | None, typer.Option(help="Default: benchmarks/group_<gpu>.csv")] = None,
    work: Annotated[Path, typer.Option(help="Folder for the model and the log.")] = Path("build/bench_group"),
) -> None:
    """Ask for one answer and for a group in turns, each to a prompt of new screenshots, and compare the times until
    every answer has begun.
    """
    from rich.console import Console

    from star_kv_sglang.cpu_mode import is_gpu_present
    from star_kv_sglang.tools.bench.fleet.run import num_jobs
    from star_kv_sglang.tools.bench.fleet.screenshots import data_urls
    from star_kv_sglang.tools.bench.group import Group, measure
    from star_kv_sglang.tools.bench.serve.checkpoint import SHAPES, random_model
    from star_kv_sglang.tools.bench.serve.errors import ServeBenchError
    from star_kv_sglang.tools.bench.serve.machine import describe, gpu_used_gib, short_name
    from star_kv_sglang.tools.bench.serve.results import Figure, Results
    from star_kv_sglang.tools.bench.serve.server import GPU_ARGUMENTS, STAR, Policy, policy_server
    from star_kv_sglang.tools.bench.serve.statistic import median_interval
    from star_kv_sglang.tools.cli.bench_serve import screen_size
    from star_kv_sglang.tools.rollout.errors import RolloutError
    from star_kv_sglang.tools.rollout.server import free_port

    if shape not in SHAPES:
        raise typer.BadParameter(f"{shape!r}: choose among {', '.join(SHAPES)}", param_hint="--shape")
    if not 0 < budget <= 1:
        raise typer.BadParameter(f"{budget}: a budget is in (0, 1]", param_hint="--budget")
    console, work = Console(), work.resolve()
    machine = describe(f"Qwen2.5-VL {shape}, random weights")
    path = csv or Path("benchmarks") / f"group_{short_name(machine.gpu)}.csv"
    plan, policy = Group(answers=answers, screens=screens, repeats=repeats), Policy(STAR, budget)
    flags = [
        *random_model(work, shape),
        *(GPU_ARGUMENTS if is_gpu_present() else ()),
        "--skip-server-warmup",
        *shlex.split(engine_args),
    ]
    with console.status("drawing screenshots") as status:
        screenshots = list(data_urls(range(plan.num_screenshots), screen_size(screen), jobs=num_jobs()).values())
        try:
            with policy_server(
                policy,
                flags,
                work / "server.log",
                port=free_port(),
                timeout_s=start_timeout,
                on_wait=lambda seconds: status.update(f"server starts, {seconds:.0f} s"),
            ) as url:
                times = measure(url, plan, screenshots, lambda number: status.update(f"prompt {number + 1}"))
        except (RolloutError, ServeBenchError) as error:
            console.print(f"[red]failed:[/] {error}", highlight=False)
            raise typer.Exit(1) from error
    results = Results(path, machine, gpu_used_gib)
    for size, seconds in times.items():
        middle, low, high = median_interval(seconds)
        note = f"{screens} screenshots of {screen}, {len(seconds)} prompts, {low:.3f} to {high:.3f}"
        results.add(Figure(policy.label, "group", "first_tokens_s_p50", middle, batch=size, note=note))
        console.print(f"{size} answers: {middle:.3f} s until all have begun ({low:.3f} to {high:.3f})")
    ratio = median_interval([many / one for one, many in zip(times[1], times[answers], strict=True)])
    note = f"{ratio[1]:.3f} to {ratio[2]:.3f}"
    results.add(Figure(policy.label, "group", "group_against_one", ratio[0], batch=answers, note=note))
    console.print(f"a group of {answers} takes {ratio[0]:.2f} x of one answer ({note})")
    console.print(f"Written: {path}")
