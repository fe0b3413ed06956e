"""The progress bar of `star-kv eval`."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from star_kv_sglang.tools.eval.session import Watcher
from star_kv_sglang.tools.eval.store import Result, Status


def noted_progress(console: Console) -> Progress:
    """Bars with what is done of what, a note for each, and the time that has passed and is left."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
    )


class BarWatcher(Watcher):
    """Draws a run: samples done, the mean of those of this session, and failures. A context manager."""

    def __init__(self, console: Console, name: str) -> None:
        self._progress = noted_progress(console)
        self._task = self._progress.add_task(name, total=None, note="")
        self._sum = 0.0
        self._scored = 0
        self._failed = 0

    def __enter__(self) -> BarWatcher:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def start(self, total: int, remaining: int) -> None:
        self._progress.update(self._task, total=total, completed=total - remaining)

    def result(self, result: Result) -> None:
        if result.status is Status.FAILED:
            self._failed += 1
        else:
            self._sum += result.score
            self._scored += 1
        mean = f"{100 * self._sum / self._scored:.1f}%" if self._scored else ""
        failed = f" {self._failed} failed" if self._failed else ""
        self._progress.update(self._task, advance=1, note=f"{mean}{failed}")
