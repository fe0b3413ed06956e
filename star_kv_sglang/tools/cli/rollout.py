"""`star-kv rollout`: run the branches of a trajectory file against a server."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from star_kv_sglang.tools.chat import ChatClient
from star_kv_sglang.tools.rollout.results import AnswerLog
from star_kv_sglang.tools.rollout.runner import Answer, Rollout, count_shared_turns, run, select
from star_kv_sglang.tools.rollout.summary import Row, Summary, compare, summarize
from star_kv_sglang.tools.rollout.trajectory import Trajectory, load_trajectories


def rollout(
    trajectories: Annotated[Path, typer.Argument(help="Trajectory file (.json), its screenshots beside it.")],
    base_url: Annotated[str, typer.Option(help="The server.")] = "http://127.0.0.1:30000",
    branches: Annotated[int | None, typer.Option(help="Run the first N trajectories of the file.")] = None,
    turns: Annotated[int | None, typer.Option(help="Run the first N turns of each.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for answers.jsonl, pool.jsonl and summary.json.")] = Path("rollout"),
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest reply.")] = 8,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds a request may take.")] = 120.0,
) -> None:
    """Run branches of a GUI agent against a server and report pool, accuracy and time."""
    console = Console()
    chosen = select(load_trajectories(trajectories), branches, turns)
    result, summary = run_with_progress(
        chosen, base_url, out, name=None, console=console, max_tokens=max_tokens, timeout_s=timeout
    )
    console.print(comparison_table([summary], compare([summary], [result])))
    console.print(f"Written to {out}")


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
