"""Best of N, and a tree search: fork at a turn, keep the best, and go on with those."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from star_kv_sglang.tools.chat import ChatClient
from star_kv_sglang.tools.rollout.agent import Agent
from star_kv_sglang.tools.rollout.branches import opened_player, play_all
from star_kv_sglang.tools.rollout.environment import Suite
from star_kv_sglang.tools.rollout.errors import RolloutError
from star_kv_sglang.tools.rollout.player import Player, Watcher
from star_kv_sglang.tools.rollout.settings import RolloutSettings
from star_kv_sglang.tools.rollout.trace import Branch, BranchResult, End

Value = Callable[[BranchResult], float]
"""How good a branch is, over or not; the more the better. It must follow from the trace."""


def reward(result: BranchResult) -> float:
    """The episode's reward so far, the value by default. Equal ones: fewer mistakes first, then fewer turns."""
    return result.end.reward


@dataclass(frozen=True, slots=True)
class TreeSettings:
    """The shape of a tree.

    Attributes:
        fork_every: Turns from one fork to the next; the first is at the beginning.
        children: Of each branch that is forked.
        keep: Branches that are forked, the best of all that are not over.
    """

    fork_every: int = 2
    children: int = 3
    keep: int = 2

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value < 1:
                raise RolloutError(f"{name} must be at least 1, not {value}")


def best_of(results: Iterable[BranchResult], value: Value = reward) -> dict[str, BranchResult]:
    """The best branch of each task."""
    by_task: dict[str, list[BranchResult]] = {}
    for result in results:
        by_task.setdefault(result.branch.task, []).append(result)
    return {task: ranked(of_task, value)[0] for task, of_task in by_task.items()}


def ranked(results: Iterable[BranchResult], value: Value = reward) -> list[BranchResult]:
    """The best first. The order is the same in every run: equal values go by mistakes, turns and names."""

    def order(result: BranchResult) -> tuple[float, int, int, list[int]]:
        mistakes = sum(row.error is not None for row in result.rows)
        return -value(result), mistakes, len(result.rows), [int(part) for part in result.branch.name.split(".")]

    return sorted(results, key=order)


async def tree_search(
    client: ChatClient,
    suite: Suite,
    agent: Agent,
    settings: RolloutSettings,
    tree: TreeSettings,
    out: Path,
    watcher: Watcher | None = None,
    value: Value = reward,
) -> list[BranchResult]:
    """Search a tree for each task: ``settings.branches`` is not used.

    A fork plays its parent's actions again in an environment of its own. Branches that are over stay as they are;
    those that are not are ranked, and the best are forked until ``max_turns``.

    Returns:
        All branches, also those that were given up, in the order in which they were played.

    Raises:
        RolloutError, ServerGoneError: As in :func:`run_branches`.
    """
    async with opened_player(client, suite, agent, settings, out, watcher, {"tree": asdict(tree)}) as player:
        found: list[BranchResult] = []
        for task in settings.tasks:
            found += await _search(player, task, tree, value)
        return found


async def _search(player: Player, task: str, tree: TreeSettings, value: Value) -> list[BranchResult]:
    settings = player.settings
    found: list[BranchResult] = []
    parents: Sequence[BranchResult | None] = [None]
    for last_turn in range(tree.fork_every, settings.max_turns + tree.fork_every, tree.fork_every):
        up_to = min(last_turn, settings.max_turns)
        plays = [
            partial(player.play, _child(task, settings.seed, one, number), up_to, () if one is None else one.rows)
            for one in parents
            for number in range(tree.children)
        ]
        level = await play_all(settings.concurrency, plays)
        found += level
        parents = ranked([one for one in level if one.end.end is End.TURNS], value)[: tree.keep]
        if not parents:
            break
    return found


def _child(task: str, seed: int, parent: BranchResult | None, number: int) -> Branch:
    if parent is None:
        return Branch(task, str(number), seed)
    return Branch(task, f"{parent.branch.name}.{number}", seed, len(parent.rows))
