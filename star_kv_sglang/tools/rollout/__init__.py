"""Runs branches of a GUI agent against an OpenAI-compatible server and measures what they did to its KV pool.

What programs use is named here: environments and agents to write, :func:`run_branches` and :func:`tree_search` to run
them, and the traces that they leave.
"""

from __future__ import annotations

from star_kv_sglang.tools.actions import Action, ActionKind
from star_kv_sglang.tools.chat import ChatClient
from star_kv_sglang.tools.rollout.agent import Agent, NoActionError, View
from star_kv_sglang.tools.rollout.branches import run_branches
from star_kv_sglang.tools.rollout.environment import (
    ActionRefusedError,
    Environment,
    EnvironmentFault,
    InstructingEnvironment,
    Score,
    Suite,
)
from star_kv_sglang.tools.rollout.errors import RolloutError
from star_kv_sglang.tools.rollout.outcomes import TaskOutcome, TimeSplit, outcomes, time_split
from star_kv_sglang.tools.rollout.player import Watcher
from star_kv_sglang.tools.rollout.search import TreeSettings, best_of, ranked, tree_search
from star_kv_sglang.tools.rollout.settings import RolloutSettings
from star_kv_sglang.tools.rollout.trace import (
    Branch,
    BranchResult,
    End,
    EndRow,
    TurnRow,
    read_trace,
    without_measurements,
)

__all__ = [
    "Action",
    "ActionKind",
    "ActionRefusedError",
    "Agent",
    "Branch",
    "BranchResult",
    "ChatClient",
    "End",
    "EndRow",
    "Environment",
    "EnvironmentFault",
    "InstructingEnvironment",
    "NoActionError",
    "RolloutError",
    "RolloutSettings",
    "Score",
    "Suite",
    "TaskOutcome",
    "TimeSplit",
    "TreeSettings",
    "TurnRow",
    "View",
    "Watcher",
    "best_of",
    "outcomes",
    "ranked",
    "read_trace",
    "run_branches",
    "time_split",
    "tree_search",
    "without_measurements",
]
