"""Many agents under one budget: a share of each branch's screenshots against one threshold over all branches.

``python -m tinygui.tree_budget --out ../out/tree_budget.jsonl`` (from ``examples/``). All branches take their turns at
the same time on one engine, histories of different lengths, and are then asked what only earlier screens know. First
every branch keeps the same share of its own (``--kv-budget``); what all of them hold together at the end of their
histories is then the budget of the whole tree (``--kv-token-budget``), for the same policy. The most that private nodes
held when any forward began is counted by the engine.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from star_kv_sglang.tools.rollout.trajectory import Trajectory
from tinygui.accuracy import MODEL
from tinygui.agents import agents_on_engine, make_trajectories, play_histories, recall, seen_by, tell


def measure(
    args: argparse.Namespace, trajectories: Sequence[Trajectory], seen: Path, **flags: Any
) -> dict[str, int | float]:
    """One engine with these flags."""
    flags |= {"kv_policy": args.policy, "kv_policy_config": args.policy_config}
    with agents_on_engine(args.model, trajectories, seen, **flags) as (engine, writer, branches):
        engine.run(play_histories(engine, writer, branches))
        counters = engine.counters()
        right = engine.run(recall(engine, writer, branches))
    row = {"right": sum(right), "asked": len(right), "accuracy": round(sum(right) / len(right), 4)}
    row["private_tokens"] = counters["num_private_tokens"]
    names = ("peak_private_tokens", "num_budget_steps", "num_budget_misses", "num_budget_evicted_tokens")
    return row | {name: counters[name] for name in names}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure both ways and print."""
    parser = argparse.ArgumentParser(description="A budget for each branch against one for the tree.")
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--policy", default="star")
    parser.add_argument("--policy-config", default="{}")
    parser.add_argument("--budget", type=float, default=0.1)
    parser.add_argument("--branches", type=int, default=64)
    parser.add_argument("--recalls", type=int, default=8, help="questions for each branch")
    parser.add_argument("--seed", type=int, default=9_500_000)
    parser.add_argument("--out", type=Path, help="append a JSON line for each engine here")
    args = parser.parse_args(arguments)
    trajectories = make_trajectories(args.seed, args.branches, args.recalls)
    given = {name: getattr(args, name) for name in ("policy", "policy_config", "branches")}
    with seen_by(args.model, trajectories) as seen:
        share = {"kv_budget": args.budget}
        per_branch = measure(args, trajectories, seen, **share)
        tell({**given, **share, **per_branch}, args.out)
        limit = {"kv_token_budget": int(per_branch["private_tokens"])}
        tell({**given, **limit, **measure(args, trajectories, seen, **limit)}, args.out)


if __name__ == "__main__":
    main()
