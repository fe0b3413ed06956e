"""More agents than the pool has room for: shrinking what nobody holds, against dropping it.

``python -m tinygui.short_pool --out ../out/short_pool.jsonl`` (from ``examples/``). All branches take their turns at
the same time on one engine whose pool is too small for their histories, once with ``shrink_before_evict`` and once
without.
The hit rate is the share of each turn's history that was found in the cache.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path

from star_kv_sglang.tools.rollout.trajectory import Trajectory
from tinygui.accuracy import MODEL
from tinygui.agents import Branch, agents_on_engine, make_trajectories, play_histories, recall, seen_by, tell


def hit_rate(branches: Sequence[Branch]) -> float:
    """Tokens found in the cache, of those that the turn before had sent and been answered with."""
    found = known = 0
    for branch in branches:
        for before, reply in zip(branch.replies, branch.replies[1:], strict=False):
            known += before.prompt
            found += min(reply.cached, before.prompt)
    return found / known


def measure(
    args: argparse.Namespace, trajectories: Sequence[Trajectory], seen: Path, *, shrink: bool
) -> dict[str, int | float]:
    """One engine."""
    flags = {
        "kv_policy": args.policy,
        "kv_budget": args.budget,
        "kv_policy_config": json.dumps({"shrink_before_evict": shrink}),
        "max_total_tokens": args.pool,
    }
    with agents_on_engine(args.model, trajectories, seen, **flags) as (engine, writer, branches):
        started = time.perf_counter()
        engine.run(play_histories(engine, writer, branches, in_flight=args.in_flight))
        seconds = time.perf_counter() - started
        counters = engine.counters()
        right = engine.run(recall(engine, writer, branches))
    num_turns = sum(len(branch.replies) for branch in branches)
    names = ("num_shrinks", "num_shrunk_tokens", "num_avoided_evictions", "num_pruned_tokens")
    return {
        "hit_rate": round(hit_rate(branches), 4),
        "turns_per_s": round(num_turns / seconds, 2),
        "recalls_right": sum(right),
        "recalls": len(right),
        **{name: counters[name] for name in names},
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure both ways and print."""
    parser = argparse.ArgumentParser(description="Shrinking against dropping in a pool that is too small.")
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--policy", default="star")
    parser.add_argument("--budget", type=float, default=0.4)
    parser.add_argument("--pool", type=int, default=6000, help="slots")
    parser.add_argument("--branches", type=int, default=64)
    parser.add_argument("--in-flight", type=int, default=8, help="requests at the same moment; the others' agents act")
    parser.add_argument("--recalls", type=int, default=4, help="questions for each branch, after the measurement")
    parser.add_argument("--seed", type=int, default=9_700_000)
    parser.add_argument("--out", type=Path, help="append a JSON line for each engine here")
    args = parser.parse_args(arguments)
    trajectories = make_trajectories(args.seed, args.branches, args.recalls)
    with seen_by(args.model, trajectories) as seen:
        for shrink in (False, True):
            given = {name: getattr(args, name) for name in ("policy", "budget", "pool", "branches", "in_flight")}
            tell({**given, "shrink": shrink, **measure(args, trajectories, seen, shrink=shrink)}, args.out)


if __name__ == "__main__":
    main()
