"""Many agents under one budget: a share of each branch's screenshots against one threshold over all branches.

``python -m tinygui.tree_budget --out ../out/tree_budget.jsonl`` (from ``examples/``). All branches take their turns at
the same time on one engine, histories of different lengths, and are then asked what only earlier screens know. First
every branch keeps the same share of its own (``--kv-budget``); what all of them hold together at the end of their
histories is then the budget of the whole tree (``--kv-token-budget``), for the same policy. The most that private nodes
held when any forward began is counted by the engine.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from star_kv_sglang.eval.suite.prompts import PromptWriter
from star_kv_sglang.eval.suite.served import SuiteEngine, device, engine_dtype, start_engine
from star_kv_sglang.eval.suite.vision import load_screens, see_all
from star_kv_sglang.rollout.trajectory import Trajectory
from tinygui.accuracy import MODEL
from tinygui.agents import Branch, make_trajectories, play_histories, recall


def measure(
    args: argparse.Namespace, trajectories: Sequence[Trajectory], folder: Path, **flags: Any
) -> dict[str, int | float]:
    """One engine with these flags."""
    branches = [Branch(one, load_screens(folder, one.id)) for one in trajectories]
    engine = SuiteEngine(start_engine(args.model, kv_policy=args.policy, **flags), trajectories[0].turns[0].image_png)
    try:
        writer = PromptWriter(args.model)
        engine.run(play_histories(engine, writer, branches))
        counters = engine.counters()
        right = engine.run(recall(engine, writer, branches))
        row = {"right": sum(right), "asked": len(right), "accuracy": round(sum(right) / len(right), 4)}
        row["private_tokens"] = counters["num_private_tokens"]
        names = ("peak_private_tokens", "num_budget_steps", "num_budget_misses", "num_budget_evicted_tokens")
        return row | {name: counters[name] for name in names}
    finally:
        engine.close()


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
    with TemporaryDirectory() as name:
        folder = Path(name)
        for _ in see_all(args.model, trajectories, folder, dtype=engine_dtype(), device=device()):
            pass
        own = {"kv_budget": args.budget, "kv_policy_config": args.policy_config}
        per_branch = measure(args, trajectories, folder, **own)
        tree = {"kv_token_budget": int(per_branch["private_tokens"]), "kv_policy_config": args.policy_config}
        tree_wide = measure(args, trajectories, folder, **tree)
    for flags, result in ((own, per_branch), (tree, tree_wide)):
        row = {"policy": args.policy, "branches": args.branches, "device": device(), **flags, **result}
        print(json.dumps(row), flush=True)
        if args.out:
            with args.out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
