"""What a rollout of branches is told."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import Any, Final

from star_kv_sglang.tools.rollout.errors import RolloutError

_HOW: Final = frozenset({"concurrency", "retries", "environment_timeout_s", "opening_timeout_s", "patience_s"})
_TASK_NAME: Final = re.compile(r"[\w.,+-]+")


@dataclass(frozen=True, slots=True)
class RolloutSettings:
    """What is run, and how.

    Attributes:
        tasks: Names of the suite's tasks.
        branches: Of each task.
        seed: Of the episodes: all branches of a task begin with the same screenshot. Also of what differs between them.
        max_turns: Most turns of a branch.
        max_mistakes: Turns in a row without an action that could be done, after which a branch gives up.
        max_tokens: Longest reply; None for what the agent needs.
        temperature: Of the sampling.
        model: The served name; None for the first that the server lists.
        kv_budget: Share of a branch's own visual tokens that stays, of servers with a KV policy; None for the server's.
        concurrency: Branches at a time, each with an environment.
        retries: Further environments that a branch may have after faults.
        environment_timeout_s: Seconds that an environment may take for one thing.
        opening_timeout_s: Seconds that it may take to be opened: a browser may have to be started again for it.
        patience_s: Seconds to wait for a server that cannot be reached.
    """

    tasks: tuple[str, ...]
    branches: int = 8
    seed: int = 0
    max_turns: int = 15
    max_mistakes: int = 3
    max_tokens: int | None = None
    temperature: float = 0.0
    model: str | None = None
    kv_budget: float | None = None
    concurrency: int = 8
    retries: int = 2
    environment_timeout_s: float = 30.0
    opening_timeout_s: float = 120.0
    patience_s: float = 120.0

    def __post_init__(self) -> None:
        if not self.tasks:
            raise RolloutError("a rollout needs at least one task")
        for task in self.tasks:
            if not _TASK_NAME.fullmatch(task) or task.startswith("."):
                raise RolloutError(f"the task {task!r} cannot name a folder: use letters, digits and . , + - _")
        for name in ("branches", "max_turns", "max_mistakes", "concurrency"):
            if getattr(self, name) < 1:
                raise RolloutError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.retries < 0:
            raise RolloutError(f"retries must not be negative, not {self.retries}")
        if self.kv_budget is not None and not 0 < self.kv_budget <= 1:
            raise RolloutError(f"kv_budget must be in (0, 1], not {self.kv_budget}")

    def describe(self) -> dict[str, Any]:
        """What must be the same for a rollout to go on: all but how fast and how patiently it runs."""
        return {name: value for name, value in asdict(self).items() if name not in _HOW}
