"""`star-kv rollout`: run the branches of a trajectory file, or of an agent in an environment, against a server."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from star_kv_sglang.tools.chat import ChatClient
from star_kv_sglang.tools.cli.rollout_branches import BranchesCommand, run_command
from star_kv_sglang.tools.rollout import End, RolloutError, RolloutSettings, TreeSettings
from star_kv_sglang.tools.rollout.results import AnswerLog
from star_kv_sglang.tools.rollout.runner import Answer, Rollout, count_shared_turns, run, select
from star_kv_sglang.tools.rollout.summary import Row, Summary, compare, summarize
from star_kv_sglang.tools.rollout.trajectory import Trajectory, load_trajectories


def rollout(
    trajectories: Annotated[
        Path | None, typer.Argument(help="Trajectory file (.json), its screenshots beside it; or give --env.")
    ] = None,
    base_url: Annotated[str, typer.Option(help="The server.")] = "http://127.0.0.1:30000",
    branches: Annotated[
        int | None, typer.Option(help="Run the first N trajectories of the file; with --env, N of each task (8).")
    ] = None,
    turns: Annotated[
        int | None, typer.Option(help="Run the first N turns of each; with --env, N at most (30).")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for what is recorded.")] = Path("rollout"),
    max_tokens: Annotated[
        int | None, typer.Option(min=1, help="Longest reply: 8; with --env, what the agent needs.")
    ] = None,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds a request may take.")] = 120.0,
    env: Annotated[
        str | None, typer.Option(help="Play in an environment: miniwob, or package.module:function of your own.")
    ] = None,
    agent: Annotated[
        str, typer.Option(help="With --env: scripted, small, a model family of `star-kv eval list`, or your own.")
    ] = "scripted",
    tasks: Annotated[str, typer.Option(help="With --env: names with commas between them, or all.")] = "all",
    seed: Annotated[int, typer.Option(help="With --env: of the episodes, and of what differs between branches.")] = 0,
    concurrency: Annotated[int, typer.Option(min=1, help="With --env: branches at a time.")] = 8,
    retries: Annotated[int, typer.Option(min=0, help="With --env: further tries of a branch after faults.")] = 2,
    temperature: Annotated[float, typer.Option(min=0, help="With --env: of the sampling.")] = 0.0,
    kv_budget: Annotated[
        float | None, typer.Option(help="With --env: share of a branch's own visual tokens that stays, in (0, 1].")
    ] = None,
    model: Annotated[str | None, typer.Option(help="With --env: by default the first that the server lists.")] = None,
    api_key: Annotated[str | None, typer.Option(envvar="OPENAI_API_KEY", help="With --env: bearer token.")] = None,
    detours: Annotated[
        float, typer.Option(min=0, max=1, help="With --agent scripted: how often a turn only moves the pointer.")
    ] = 0.3,
    patience: Annotated[float, typer.Option(min=0, help="With --env: seconds to wait for a server.")] = 120.0,
    env_timeout: Annotated[float, typer.Option(min=1, help="With --env: seconds it may take for one thing.")] = 30.0,
    chromium: Annotated[Path | None, typer.Option(help="With --env miniwob: the browser's program.")] = None,
    fork_every: Annotated[
        int | None, typer.Option(min=1, help="With --env: search a tree instead, with a fork every N turns.")
    ] = None,
    children: Annotated[int, typer.Option(min=1, help="With --fork-every: children of a fork.")] = 3,
    keep: Annotated[int, typer.Option(min=1, help="With --fork-every: branches that are forked, the best.")] = 2,
) -> None:
    """Run branches of a GUI agent on a server: recorded trajectories, or live in an environment."""
    console = Console()
    if (trajectories is None) == (env is None):
        raise RolloutError("give either a trajectory file or --env; star-kv rollout --help explains both")
    if trajectories is not None:
        chosen = select(load_trajectories(trajectories), branches, turns)
        result, summary = run_with_progress(
            chosen, base_url, out, name=None, console=console, max_tokens=max_tokens or 8, timeout_s=timeout
        )
        console.print(comparison_table([summary], compare([summary], [result])))
        console.print(f"Written to {out}")
        return

    def settings(names: tuple[str, ...]) -> RolloutSettings:
        return RolloutSettings(
            tasks=names,
            branches=8 if branches is None else branches,
            seed=seed,
            max_turns=30 if turns is None else turns,
            max_tokens=max_tokens,
            temperature=temperature,
            model=model,
            kv_budget=kv_budget,
            concurrency=concurrency,
            retries=retries,
            environment_timeout_s=env_timeout,
            patience_s=patience,
        )

    command = BranchesCommand(
        env=str(env),
        agent=agent,
        tasks=tasks,
        detours=detours,
        chromium=chromium,
        base_url=base_url,
        api_key=api_key,
        timeout_s=timeout,
        tree=None if fork_every is None else TreeSettings(fork_every, children, keep),
        out=out,
        settings=settings,
    )
    results = run_command(command, console)
    if any(one.end.end is End.FAILED for one in results):
        raise typer.Exit(1)


def run_with_progress(
    trajectories: list[Trajectory],
    base_url: str,
    out: Path,
    *,
    name: str | None,
    console: Console,
    max_tokens: int = 8,
    timeout_s: float = 120.0,
) -> tuple[Rollout, Summary]:
    """Runs a rollout with a progress bar and writes its files; ``name`` is the server's policy by default.

    Raises:
        RolloutError: a request failed; what was answered until then is in ``out``.
    """
    shared = count_shared_turns(trajectories)
    questions = [[len(turn.questions) for turn in trajectory.turns] for trajectory in trajectories]
    total = sum(questions[0][:shared]) + sum(sum(counts[shared:]) for counts in questions)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with AnswerLog(out) as log, Progress(*columns, console=console) as progress:
        task = progress.add_task(f"{len(trajectories)} branches", total=total)

        def on_answer(answer: Answer) -> None:
            log.write(answer)
            progress.advance(task)

        async def go() -> Rollout:
            async with ChatClient(base_url, timeout_s=timeout_s) as client:
                return await run(client, trajectories, max_tokens=max_tokens, on_answer=on_answer)

        result = asyncio.run(go())
        summary = summarize(result, name or result.policy)
        log.finish(result, summary)
    return result, summary


def comparison_table(summaries: list[Summary], rows: list[Row]) -> Table:
    """The rows as a table for the terminal."""
    table = Table("", *(summary.name for summary in summaries))
    for column in table.columns[1:]:
        column.justify = "right"
    for row in rows:
        table.add_row(row.label, *row.cells)
    return table
