"""What ``star-kv rollout --env`` shows: a bar, a line for each branch that runs, and the tables at the end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from star_kv_sglang.tools.chat import HITS_UNKNOWN
from star_kv_sglang.tools.markdown import markdown_table
from star_kv_sglang.tools.rollout import Branch, BranchResult, End, TaskOutcome, TimeSplit, TurnRow, Watcher
from star_kv_sglang.tools.rollout.pool import PoolSample


class ProgressDisplay(Watcher):
    """Draws a rollout while the block runs. Faults stay on the screen, a line each."""

    def __init__(self, console: Console, num_branches: int | None, max_turns: int) -> None:
        self._console = console
        self._max_turns = max_turns
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self._progress = Progress(*columns, console=console, transient=False)
        self._all = self._progress.add_task("branches", total=num_branches)
        self._running: dict[Branch, TaskID] = {}

    def __enter__(self) -> ProgressDisplay:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in self._running.values():
            self._progress.remove_task(task)
        self._progress.stop()

    def start(self, branch: Branch, num_turns: int) -> None:
        self._running[branch] = self._progress.add_task(f"  {branch.label}", total=self._max_turns, completed=num_turns)

    def turn(self, branch: Branch, row: TurnRow) -> None:
        self._progress.update(self._running[branch], completed=row.turn + 1)

    def fault(self, branch: Branch, text: str) -> None:
        self._say(f"fault: {branch.label}: {text}; it is tried again")

    def wait(self, text: str) -> None:
        self._say(f"waiting: {text}")

    def end(self, result: BranchResult) -> None:
        task = self._running.pop(result.branch, None)
        if task is not None:
            self._progress.remove_task(task)
        self._progress.advance(self._all)
        if result.end.end is End.FAILED:
            self._say(f"failed: {result.branch.label}: {result.end.error}")

    def _say(self, line: str) -> None:
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)


_COLUMNS = ("task", "branches", "success", "best reward", "mean reward", "turns", "seconds", "prompt cached")


def task_table(outcomes: Sequence[TaskOutcome]) -> Table:
    """A row for each task."""
    table = Table(*_COLUMNS)
    for column in table.columns[1:]:
        column.justify = "right"
    for one in outcomes:
        table.add_row(*_cells(one), end_section=len(outcomes) > 1 and one is outcomes[-2])
    return table


def task_markdown(outcomes: Sequence[TaskOutcome]) -> str:
    """The same for a page."""
    return markdown_table(_COLUMNS, map(_cells, outcomes), numbers=True) + "\n"


def _cells(one: TaskOutcome) -> tuple[str, ...]:
    failed = f" ({one.failed} failed)" if one.failed else ""
    return (
        one.task,
        f"{one.branches}{failed}",
        f"{one.successes / one.branches:.0%}",
        f"{one.best:.2f}",
        f"{one.mean:.2f}",
        str(one.turns),
        f"{one.seconds:.1f}",
        HITS_UNKNOWN if one.cached is None else f"{one.cached:.0%}",
    )


def time_table(split: TimeSplit, cpu_s: float, environment: str) -> Table:
    """Where the seconds of a turn went.

    Args:
        split: Of all branches.
        cpu_s: Seconds of processor time that this process has used in all.
        environment: What the environment is called.
    """
    table = Table("where the time of a turn went", "seconds", "share")
    for column in table.columns[1:]:
        column.justify = "right"
    shares = {
        environment: split.environment_s,
        "server": split.server_s,
        "waiting for another branch or the server": split.waiting_s,
        "our code": split.own_s,
    }
    whole = sum(shares.values())
    for name, seconds in shares.items():
        table.add_row(name, f"{seconds:.4f}", f"{seconds / whole:.1%}" if whole else "")
    table.add_section()
    if split.turns:
        table.add_row("our process's processor time, a turn", f"{cpu_s / split.turns:.4f}", "")
    table.add_row(f"opening a branch's {environment}, a branch", f"{split.opening_s:.4f}", "")
    return table


def pool_use(samples: Sequence[PoolSample]) -> dict[str, int | None]:
    """What the branches did to the server's pool, in tokens; None for what it does not tell."""
    first, last = samples[0], samples[-1]
    resident = [sample.resident_tokens for sample in samples if sample.resident_tokens is not None]
    pruned = None
    # A server that was restarted counts from zero again.
    if first.pruned_tokens is not None and last.pruned_tokens is not None:
        pruned = last.pruned_tokens - (first.pruned_tokens if last.pruned_tokens >= first.pruned_tokens else 0)
    return {
        "peak_tokens": max(resident, default=None),
        "shared_tokens": last.shared_tokens,
        "private_tokens": last.private_tokens,
        "pruned_tokens": pruned,
    }


def pool_table(pool: Mapping[str, int | None]) -> Table:
    """The same as a table."""
    table = Table("tokens in the server's pool", "")
    table.columns[1].justify = "right"
    names = {
        "peak_tokens": "peak",
        "shared_tokens": "shared by branches, at the end",
        "private_tokens": "private to a branch, at the end",
        "pruned_tokens": "pruned meanwhile",
    }
    for key, name in names.items():
        value = pool[key]
        table.add_row(name, "not reported" if value is None else f"{value:,}")
    return table
