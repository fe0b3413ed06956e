"""From branches to figures: what each task came to, and where the time went."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from star_kv_sglang.tools.rollout.trace import BranchResult, End


@dataclass(frozen=True, slots=True)
class TaskOutcome:
    """The branches of one task.

    Attributes:
        task: Its name; ``all`` for all tasks together.
        branches, successes, failed: How many there are, ended with a reward above zero, or ended by a fault.
        best, mean: Reward.
        turns: Played by all branches, those that a fork took over counted once.
        seconds: Of all turns and openings, branch by branch; branches run at the same time.
        cached: Share of prompt tokens that the server found in its cache; None where it does not report.
    """

    task: str
    branches: int
    successes: int
    failed: int
    best: float
    mean: float
    turns: int
    seconds: float
    cached: float | None


@dataclass(frozen=True, slots=True)
class TimeSplit:
    """Mean seconds of a turn, by where they went, and the seconds a branch took to open."""

    environment_s: float
    server_s: float
    waiting_s: float
    own_s: float
    opening_s: float
    turns: int


_SHARES = ("environment_s", "server_s", "waiting_s", "own_s")


def outcomes(results: Sequence[BranchResult]) -> list[TaskOutcome]:
    """One outcome for each task, in order, and one for all where there are several."""
    by_task: dict[str, list[BranchResult]] = {}
    for result in results:
        by_task.setdefault(result.branch.task, []).append(result)
    found = [_outcome(task, of_task) for task, of_task in by_task.items()]
    return found if len(found) < 2 else [*found, _outcome("all", results)]


def time_split(results: Sequence[BranchResult]) -> TimeSplit:
    """Where the time went."""
    rows = [row.measured for result in results for row in result.rows[result.branch.first_turn :]]
    means = {name: sum(row[name] for row in rows) / len(rows) if rows else 0.0 for name in _SHARES}
    opening = sum(result.end.measured["opening_s"] for result in results)
    return TimeSplit(**means, opening_s=opening / max(1, len(results)), turns=len(rows))


def _outcome(task: str, results: Sequence[BranchResult]) -> TaskOutcome:
    rows = [row.measured for result in results for row in result.rows[result.branch.first_turn :]]
    rewards = [result.end.reward for result in results]
    cached = [row["cached_tokens"] for row in rows]
    prompts = sum(row["prompt_tokens"] for row in rows)
    return TaskOutcome(
        task=task,
        branches=len(results),
        successes=sum(result.success for result in results),
        failed=sum(result.end.end is End.FAILED for result in results),
        best=max(rewards),
        mean=sum(rewards) / len(rewards),
        turns=len(rows),
        seconds=sum(sum(row[name] for name in _SHARES) for row in rows)
        + sum(result.end.measured["opening_s"] for result in results),
        cached=None if not prompts or None in cached else sum(cached) / prompts,
    )
