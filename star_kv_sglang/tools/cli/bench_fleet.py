"""`star-kv bench fleet`: turns a second of many agents at one server."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from star_kv_sglang.tools.bench.serve.results import Figure

_IMAGE_CACHE = "--mm-preprocess-cache-size-mb 16384"
_SEARCH = f"{_IMAGE_CACHE}; {_IMAGE_CACHE} --mm-processor-worker-num 4 --mm-io-worker-num 16"


def fleet(
    servers: Annotated[
        str,
        typer.Option(
            help="Among stock, full, window and 'star BUDGET', separated by semicolons; a history of its own behind an "
            "@, flags of its own behind a colon."
        ),
    ] = "stock; star 0.2",
    search: Annotated[
        str,
        typer.Option(help="Flags of stock of which the fastest is its baseline, separated by semicolons; '' for none."),
    ] = _SEARCH,
    search_turns: Annotated[int, typer.Option(min=1, help="Turns of the fleet that decides it.")] = 3,
    branches: Annotated[int, typer.Option(min=1, help="Agents at the same time.")] = 24,
    turns: Annotated[int, typer.Option(min=1, help="Turns of each.")] = 8,
    history: Annotated[str, typer.Option(help="Screenshots sent again: append, last:N or interval:N.")] = "append",
    group_size: Annotated[int, typer.Option(min=1, help="Branches that share their first turns.")] = 1,
    shared: Annotated[int, typer.Option(min=0, help="Turns that a group shares.")] = 0,
    answer_tokens: Annotated[int, typer.Option(min=1, help="Length of an answer.")] = 64,
    think: Annotated[float, typer.Option(min=0, help="Seconds between an answer and the next screenshot.")] = 0.0,
    references: Annotated[
        bool, typer.Option("--references", help="Agents send a digest for a screenshot that they have sent before.")
    ] = False,
    first_turns: Annotated[
        int, typer.Option(min=0, help="Show the tokens prefilled in so many turns of each branch too.")
    ] = 0,
    pool: Annotated[int | None, typer.Option(min=1, help="Slots of every server's pool; SGLang chooses.")] = None,
    screen: Annotated[str, typer.Option(help="Width x height of the screenshots.")] = "1920x1080",
    shape: Annotated[str, typer.Option(help="Model with random weights: 7b or tiny.")] = "7b",
    model_path: Annotated[str | None, typer.Option(help="Serve this model instead, with its weights.")] = None,
    engine_args: Annotated[str, typer.Option(help="Further flags for every server, as one string.")] = "",
    most_seconds: Annotated[float, typer.Option(min=1, help="No turn of a server begins later.")] = 300.0,
    start_timeout: Annotated[float, typer.Option(min=1, help="Seconds a server may take to start.")] = 400.0,
    csv: Annotated[Path | None, typer.Option(help="Default: benchmarks/fleet_<gpu>.csv")] = None,
    work: Annotated[Path, typer.Option(help="Folder for the model and logs.")] = Path("build/bench_fleet"),
) -> None:
    """Measure turns a second, time to first token, hits, processor and GPU time: agents over HTTP, base64 PNG.

    Stock is measured at its best: the fastest of --search. Exits 1 when a server failed.
    """
    from rich.console import Console

    from star_kv_sglang.tools.bench.fleet.history import History
    from star_kv_sglang.tools.bench.fleet.load import Load
    from star_kv_sglang.tools.bench.fleet.run import Plan, Run, Server, num_jobs
    from star_kv_sglang.tools.bench.fleet.screenshots import data_urls
    from star_kv_sglang.tools.bench.serve.checkpoint import SHAPES, random_model
    from star_kv_sglang.tools.bench.serve.errors import ServeBenchError
    from star_kv_sglang.tools.bench.serve.machine import describe, gpu_used_gib, short_name
    from star_kv_sglang.tools.bench.serve.results import Results
    from star_kv_sglang.tools.cli.bench_serve import screen_size

    console = Console()
    if shape not in SHAPES:
        raise typer.BadParameter(f"{shape!r}: choose among {', '.join(SHAPES)}", param_hint="--shape")
    if shared > turns:
        raise typer.BadParameter(f"{shared}: a branch has {turns} turns", param_hint="--shared")
    if first_turns > turns:
        raise typer.BadParameter(f"{first_turns}: a branch has {turns} turns", param_hint="--first-turns")
    try:
        load = Load(branches, turns, History.parse(history), group_size, shared, answer_tokens, think)
        chosen = [Server.parse(text) for text in servers.split(";") if text.strip()]
    except ServeBenchError as error:
        raise typer.BadParameter(str(error)) from error
    if len({server.label for server in chosen}) < len(chosen):
        raise typer.BadParameter(f"{servers}: two servers of one policy have one name; run them one by one")
    work = work.resolve()
    model = random_model(work, shape) if model_path is None else ["--model-path", model_path]
    machine = describe(model_path or f"Qwen2.5-VL {shape}, random weights")
    path = csv or Path("benchmarks") / f"fleet_{short_name(machine.gpu)}.csv"
    with console.status("") as status:
        status.update("drawing screenshots")
        screenshots = data_urls(load.seeds(), screen_size(screen), jobs=num_jobs())
        plan = Plan(
            servers=chosen,
            search=[flags.strip() for flags in search.split(";") if flags.strip()],
            search_turns=search_turns,
            load=load,
            model_arguments=model,
            engine_arguments=[*([] if pool is None else ["--max-total-tokens", str(pool)]), *shlex.split(engine_args)],
            most_seconds=most_seconds,
            work=work,
            start_timeout_s=start_timeout,
            references=references,
            first_turns=first_turns,
        )
        run = Run(plan, Results(path, machine, gpu_used_gib), screenshots, status.update)
        run.measure()
    console.print(_table(run.results.figures))
    console.print(f"Written: {path}")
    for problem in run.problems:
        console.print(f"[red]failed:[/] {problem}", highlight=False)
    if run.problems:
        raise typer.Exit(1)


def _table(figures: list[Figure]) -> Table:
    """One column for each server, one line for each figure, with its ratio to the first server."""
    from rich.table import Table

    shown = [figure for figure in figures if figure.phase == "fleet" and figure.value is not None]
    labels = list(dict.fromkeys(figure.policy for figure in shown))
    values = {(figure.policy, figure.metric): figure.value for figure in shown}
    table = Table("figure", *labels)
    for metric in dict.fromkeys(figure.metric for figure in shown):
        base = values.get((labels[0], metric))
        cells = []
        for label in labels:
            value = values.get((label, metric))
            ratio = f"  {value / base:.2f} x" if value is not None and base and label != labels[0] else ""
            cells.append("" if value is None else f"{value:.4g}{ratio}")
        table.add_row(metric, *cells)
    return table
