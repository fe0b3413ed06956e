"""`star-kv eval`: benchmarks against a server, and runs against each other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from star_kv_sglang.tools.cli.eval_pilots import pilots
from star_kv_sglang.tools.cli.eval_suite import suite, suite_report
from star_kv_sglang.tools.eval.benchmarks import BENCHMARKS, get_benchmark
from star_kv_sglang.tools.eval.benchmarks.base import Benchmark
from star_kv_sglang.tools.eval.errors import EvalError
from star_kv_sglang.tools.eval.families import FAMILIES, get_family
from star_kv_sglang.tools.eval.families.base import ModelFamily
from star_kv_sglang.tools.eval.progress import BarWatcher
from star_kv_sglang.tools.eval.report import (
    build_grid,
    comparison_json,
    comparison_tables,
    find_runs,
    grid_table,
    run_tables,
    summary_json,
)
from star_kv_sglang.tools.eval.runner import Protocol
from star_kv_sglang.tools.eval.samples import Dataset
from star_kv_sglang.tools.eval.session import ServerOptions, Task, evaluate, is_complete, load
from star_kv_sglang.tools.eval.store import load_run
from star_kv_sglang.tools.eval.summary import Summary, compare, summarize
from star_kv_sglang.tools.eval.sweep import Configuration, configurations, data_folder
from star_kv_sglang.tools.rollout.server import serving

eval_app = typer.Typer(
    help="Measure accuracy under a policy and a budget.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

eval_app.command("pilots")(pilots)
eval_app.command("suite")(suite)
eval_app.command("suite-report")(suite_report)

ALL_FRAMES = -1
_SHOWN_PROBLEMS = 5

FamilyOption = Annotated[str, typer.Option(help="Prompts and action language; see `star-kv eval list`.")]
ProtocolOption = Annotated[
    Protocol,
    typer.Option(
        help="stateless: every prompt is prefilled whole. persistent: what was pruned at earlier turns is gone."
    ),
]
FramesOption = Annotated[
    int | None,
    typer.Option(min=ALL_FRAMES, help="Earlier screenshots in a prompt; -1 for all. By default the benchmark's own."),
]
MaxTokensOption = Annotated[int | None, typer.Option(min=1, help="Longest reply. By default the benchmark's own.")]
LimitOption = Annotated[int | None, typer.Option(min=1, help="Only the first N episodes.")]
ConcurrencyOption = Annotated[int, typer.Option(min=1, help="Requests at a time.")]
TimeoutOption = Annotated[float, typer.Option(min=1, help="Seconds that a request may take.")]
PromptOption = Annotated[
    Path | None, typer.Option(exists=True, dir_okay=False, help="A file that replaces the family's system prompt.")
]
MinPixelsOption = Annotated[int | None, typer.Option(help="min_pixels of the served model's processor, if changed.")]
MaxPixelsOption = Annotated[int | None, typer.Option(help="max_pixels of the served model's processor, if changed.")]


@eval_app.command("list")
def list_known() -> None:
    """List the benchmarks and the model families."""
    console = Console()
    for title, summaries in (
        ("Benchmarks", {name: item.summary for name, item in BENCHMARKS.items()}),
        ("Model families (--model-family)", {name: item.summary for name, item in FAMILIES.items()}),
    ):
        table = Table("name", "what it is", title=title, title_justify="left")
        for name, summary in sorted(summaries.items()):
            table.add_row(name, summary)
        console.print(table)


@eval_app.command("run")
def run_benchmark(
    benchmark: Annotated[str, typer.Argument(help="A benchmark; see `star-kv eval list`.")],
    data: Annotated[Path, typer.Option(help="Folder with the benchmark's files.")],
    model_family: FamilyOption,
    out: Annotated[Path, typer.Option(help="Folder for the results; a run that stopped goes on in it.")],
    base_url: Annotated[str, typer.Option(help="The OpenAI-compatible server.")] = "http://127.0.0.1:30000",
    protocol: ProtocolOption = Protocol.STATELESS,
    history_frames: FramesOption = None,
    max_tokens: MaxTokensOption = None,
    limit: LimitOption = None,
    concurrency: ConcurrencyOption = 16,
    timeout: TimeoutOption = 600.0,
    retries: Annotated[int, typer.Option(min=0, help="Further attempts when the server is busy.")] = 3,
    model: Annotated[str | None, typer.Option(help="Served model name; by default the first that is listed.")] = None,
    api_key: Annotated[str | None, typer.Option(envvar="OPENAI_API_KEY", help="Bearer token.")] = None,
    label: Annotated[str | None, typer.Option(help="Name in tables; by default the folder's.")] = None,
    system_prompt: PromptOption = None,
    min_pixels: MinPixelsOption = None,
    max_pixels: MaxPixelsOption = None,
    cache_salt: Annotated[bool, typer.Option(help="Send cache_salt; off for servers that refuse the field.")] = True,
) -> None:
    """Ask a server a benchmark's questions; exit 1 when requests failed."""
    console = Console()
    known = get_benchmark(benchmark)
    family = _family(model_family, system_prompt, min_pixels, max_pixels)
    task = _task(known, family, data, protocol, history_frames, max_tokens, limit, cache_salt, console)
    server = ServerOptions(base_url, api_key, model, timeout, retries, concurrency)
    summary = _evaluate(task, server, out, label, console)
    console.print(run_tables(summary))
    console.print(f"Written to {out}")
    if summary.num_failed:
        Console(stderr=True).print(
            f"{summary.num_failed} requests failed (see results.jsonl); run the same command to ask them again"
        )
        raise typer.Exit(1)


@eval_app.command("show")
def show(
    folders: Annotated[list[Path], typer.Argument(help="Folders of runs, or folders that hold such folders.")],
) -> None:
    """Show the tables of runs, and all of them beside each other."""
    console = Console()
    for folder in folders:
        for run in find_runs(folder).values():
            console.print(run_tables(summarize(run)))
    console.print(grid_table(build_grid(folders)))


@eval_app.command("compare")
def compare_runs(
    full: Annotated[Path, typer.Argument(help="The reference, with the full cache: a run, or a folder of runs.")],
    others: Annotated[list[Path], typer.Argument(help="Runs of the same samples, or folders of runs.")],
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the figures to this file.")] = None,
) -> None:
    """Compare runs with the full cache: differences, paired tests, samples that flipped, reply length."""
    console = Console()
    references = find_runs(full)
    rivals = [find_runs(folder) for folder in others]
    figures = {}
    for name, reference in references.items():
        matching = [runs[name] for runs in rivals if name in runs]
        if not matching:
            continue
        summary = summarize(reference)
        comparisons = [compare(reference, run) for run in matching]
        console.print(comparison_tables(summary, comparisons))
        figures[name] = comparison_json(summary, comparisons)
    if not figures:
        raise EvalError(f"{full} and the other folders have no benchmark in common")
    console.print(grid_table(build_grid([full, *others])))
    if json_file is not None:
        json_file.write_text(json.dumps(figures, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


@eval_app.command("sweep", context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def sweep(
    context: typer.Context,
    model_path: Annotated[str, typer.Option(help="The model, for `star-kv serve`.")],
    model_family: FamilyOption,
    data: Annotated[Path, typer.Option(help="Folder with one folder for each benchmark, by its name.")],
    out: Annotated[Path, typer.Option(help="Folder for the results; a sweep that stopped goes on in it.")],
    benchmarks: Annotated[str, typer.Option(help="Comma-separated.")] = (
        "screenspot-v2,screenspot-pro,android-control-high,agentnetbench"
    ),
    policies: Annotated[str, typer.Option(help="Comma-separated; the full cache always runs first.")] = "star",
    budgets: Annotated[str, typer.Option(help="Comma-separated shares of the visual tokens.")] = "0.4,0.2,0.1,0.05",
    protocol: ProtocolOption = Protocol.STATELESS,
    history_frames: FramesOption = None,
    max_tokens: MaxTokensOption = None,
    limit: LimitOption = None,
    concurrency: ConcurrencyOption = 16,
    timeout: TimeoutOption = 600.0,
    start_timeout: Annotated[float, typer.Option(min=1, help="Seconds that a server may take to start.")] = 1800.0,
    system_prompt: PromptOption = None,
    min_pixels: MinPixelsOption = None,
    max_pixels: MaxPixelsOption = None,
) -> None:
    """Run benchmarks under the full cache and under policies at several budgets, each on its own server.

    Words that are no options of this command go to `star-kv serve`.
    """
    console = Console()
    family = _family(model_family, system_prompt, min_pixels, max_pixels)
    names = [name.strip() for name in benchmarks.split(",") if name.strip()]
    chosen = configurations([name.strip() for name in policies.split(",") if name.strip()], _shares(budgets))
    tasks = {
        name: _task(
            get_benchmark(name),
            family,
            data_folder(data, name),
            protocol,
            history_frames,
            max_tokens,
            limit,
            True,
            console,
        )
        for name in names
    }
    for configuration in chosen:
        folder = out / configuration.label
        missing = {name: task for name, task in tasks.items() if not is_complete(task, folder / name)}
        if missing:
            arguments = ["--model-path", model_path, *configuration.arguments, *context.args]
            _sweep_one(configuration, missing, arguments, out, concurrency, timeout, start_timeout, console)
    folders = [out / configuration.label for configuration in chosen]
    if len(folders) > 1:
        compare_runs(folders[0], folders[1:], out / "comparison.json")
    else:
        console.print(grid_table(build_grid(folders)))


def _sweep_one(
    configuration: Configuration,
    tasks: dict[str, Task],
    arguments: list[str],
    out: Path,
    concurrency: int,
    timeout: float,
    start_timeout: float,
    console: Console,
) -> None:
    log = out / configuration.label / "server.log"
    with console.status("starting") as status:

        def on_wait(seconds: float) -> None:
            status.update(f"{configuration.label}: the server starts ({seconds:.0f} s; {log})")

        with serving(arguments, log, timeout_s=start_timeout, on_wait=on_wait) as url:
            status.stop()
            server = ServerOptions(url, timeout_s=timeout, concurrency=concurrency)
            for name, task in tasks.items():
                _evaluate(task, server, out / configuration.label / name, configuration.label, console)


def _evaluate(task: Task, server: ServerOptions, out: Path, label: str | None, console: Console) -> Summary:
    name = task.benchmark.name if label is None else f"{task.benchmark.name} {label}"
    with BarWatcher(console, name) as watcher:
        evaluate(task, server, out, label, watcher)
    summary = summarize(load_run(out))
    text = json.dumps(summary_json(summary), indent=1, ensure_ascii=False)
    (out / "summary.json").write_text(f"{text}\n", encoding="utf-8")
    return summary


def _family(name: str, prompt: Path | None, min_pixels: int | None, max_pixels: int | None) -> ModelFamily:
    family = get_family(name).with_pixels(min_pixels, max_pixels)
    return family if prompt is None else family.with_prompt(prompt.read_text(encoding="utf-8").rstrip("\n"))


def _task(
    benchmark: Benchmark,
    family: ModelFamily,
    data: Path,
    protocol: Protocol,
    history_frames: int | None,
    max_tokens: int | None,
    limit: int | None,
    cache_salt: bool,
    console: Console,
) -> Task:
    frames = benchmark.default_history_frames if history_frames is None else history_frames
    frames = None if frames == ALL_FRAMES else frames
    dataset = load(benchmark, data, frames, limit)
    _print_problems(dataset, benchmark.name, console)
    tokens = benchmark.max_tokens if max_tokens is None else max_tokens
    return Task(benchmark, family, dataset, protocol, frames, tokens, cache_salt)


def _print_problems(dataset: Dataset, name: str, console: Console) -> None:
    for problem in dataset.problems[:_SHOWN_PROBLEMS]:
        console.print(f"[yellow]left out:[/] {problem}", highlight=False, soft_wrap=True)
    if dataset.problems:
        console.print(
            f"{name}: {len(dataset.problems)} rows left out; problems.jsonl in the run's folder has all of them"
        )


def _shares(text: str) -> list[float]:
    try:
        return [float(word) for word in text.split(",") if word.strip()]
    except ValueError:
        raise EvalError(f"--budgets {text!r} must be numbers with commas between them, for example 0.4,0.2") from None
