"""2,000 mixed requests on one GPU engine under SGLang's leak checks, and what the load changes in the answers.

    python tests/gpu/mixed_load.py --page-size 16 --out result.json
    python tests/gpu/mixed_load.py --policy stock --out stock.json

Conversations that share nothing are held under the load and then again, alone in the same engine. Turns are compared
whose history the load did not touch: full hits, never put back, no screenshot cut by a chunk, the same answers so far.
In bfloat16 a batch's composition changes roundings, so that some answers differ on stock SGLang too; that run says how
many.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from shutil import copytree
from typing import Any

from star_kv_sglang.tools.bench.serve.machine import describe
from tests.engine.harness import TestEngine, running_engine
from tests.engine.masked_reference import Drop, read_drops
from tests.gpu.load import BURST_TOKENS, LONG_PROMPTS, Load, Turn
from tests.models.checkpoints import EXAMPLE_MODEL

POOL = 45_056
CONTEXT = 49_152
BUDGET = 0.2
LOADED, ALONE = "loaded", "alone"


@dataclass(frozen=True)
class Difference:
    """Turns under load against the same turns alone.

    Attributes:
        num_turns: All of them.
        num_compared: Those whose history the load did not touch.
        num_same_tokens: Of these.
        dlogprob_p50, dlogprob_p99, dlogprob_max: Of generated tokens, up to the first other one.
        num_prunes: Prunes of these turns.
        mean_same_kept: Share of a layer's kept tokens that are the same, mean over all layers and prunes.
        least_same_kept: Of the worst prune, mean over its layers.
        worst_prune: Its turn, screenshot, segment, and how many tokens were kept under load and alone.
    """

    num_turns: int
    num_compared: int
    num_same_tokens: int
    dlogprob_p50: float
    dlogprob_p99: float
    dlogprob_max: float
    num_prunes: int
    mean_same_kept: float
    least_same_kept: float
    worst_prune: str = ""


def compare(loaded: Mapping[str, Turn], alone: Mapping[str, Turn], drops: Sequence[Drop]) -> Difference:
    """What the load changed."""
    by_rid: dict[str, dict[tuple[int, int, int], Drop]] = {}
    for drop in drops:
        by_rid.setdefault(drop.rid, {})[drop.frame, drop.start, drop.end] = drop
    num_compared = num_same = 0
    gaps: list[float] = []
    overlaps: list[tuple[float, str]] = []
    cut: set[str] = set()
    for name in sorted(set(loaded) & set(alone)):
        conversation = name.split("-")[0]
        mine, other = by_rid.get(f"{LOADED}-{name}", {}), by_rid.get(f"{ALONE}-{name}", {})
        if mine.keys() != other.keys():
            cut.add(conversation)
        turn, again = loaded[name], alone[name]
        if conversation in cut or not (turn.clean and again.clean):
            continue
        num_compared += 1
        num_same += turn.tokens == again.tokens
        overlaps += [_overlap(name, mine[place], other[place]) for place in mine]
        pairs = zip(turn.tokens, again.tokens, turn.logprobs, again.logprobs, strict=True)
        for token, also, logprob, expected in pairs:
            gaps.append(abs(logprob - expected))
            if token != also:
                cut.add(conversation)  # what follows is another conversation
                break
    gaps.sort()
    worst = min(overlaps, default=(1.0, ""))
    return Difference(
        num_turns=len(loaded),
        num_compared=num_compared,
        num_same_tokens=num_same,
        dlogprob_p50=gaps[len(gaps) // 2] if gaps else 0.0,
        dlogprob_p99=gaps[len(gaps) * 99 // 100] if gaps else 0.0,
        dlogprob_max=gaps[-1] if gaps else 0.0,
        num_prunes=len(overlaps),
        mean_same_kept=sum(share for share, _ in overlaps) / len(overlaps) if overlaps else 1.0,
        least_same_kept=worst[0],
        worst_prune=worst[1],
    )


def _overlap(turn: str, mine: Drop, other: Drop) -> tuple[float, str]:
    """Share of the tokens that both kept, mean over the layers, and where that was."""
    counts = mine.kept.shape[1], other.kept.shape[1]
    place = f"{turn}, screenshot {mine.frame}, {mine.start}-{mine.end}, {counts[0]} and {counts[1]} kept"
    if not counts[0] or counts[0] != counts[1]:
        return float(counts[0] == counts[1]), place
    same = [len(set(a) & set(b)) / len(a) for a, b in zip(mine.kept.tolist(), other.kept.tolist(), strict=True)]
    return sum(same) / len(same), place


def long_context_model(folder: Path) -> Path:
    """The example model with room for long prompts; weights are the same."""
    model = Path(copytree(EXAMPLE_MODEL, folder / "model"))
    file = model / "config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    config["text_config"]["max_position_embeddings"] = CONTEXT
    file.write_text(json.dumps(config), encoding="utf-8")
    return model


def play(engine: TestEngine, given: argparse.Namespace) -> tuple[Load, Load, dict[str, int]]:
    """The load, the compared conversations alone, and the policy's report after both."""
    loaded = Load(
        engine, LOADED, given.seed, given.requests, time.monotonic() + given.seconds, given.longest, given.burst
    )
    engine.run(loaded.run(given.clients, given.compared))
    stats = {} if given.policy == "stock" else engine.run(engine.idle_stats())
    engine.flush()
    alone = Load(engine, ALONE, given.seed, 10**9, time.monotonic() + given.alone_seconds)
    finished = sorted({int(name.split("-")[0]) for name, turn in loaded.turns.items() if turn.clean})

    async def one_after_the_other() -> None:
        for number in finished:
            if alone.open:
                await alone.compared(number)

    engine.run(one_after_the_other())
    if given.policy != "stock":
        engine.run(engine.idle_stats())
    return loaded, alone, stats


def main() -> None:
    """Read the command line, run and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policy", choices=["star", "stock"], default="star")
    parser.add_argument("--page-size", type=int, default=1)
    parser.add_argument(
        "--shrink", action="store_true", help="shrink before evicting; compared turns may then lose more"
    )
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--seconds", type=float, default=100.0, help="the load ends then, whatever was sent")
    parser.add_argument("--alone-seconds", type=float, default=25.0)
    parser.add_argument("--clients", type=int, default=24)
    parser.add_argument("--compared", type=int, default=100, help="conversations of four turns")
    parser.add_argument("--pool", type=int, default=POOL)
    parser.add_argument("--longest", type=int, default=LONG_PROMPTS[-1], help="most tokens of a prompt")
    parser.add_argument("--burst", type=int, default=BURST_TOKENS, help="tokens of a long answer")
    parser.add_argument("--eager", action="store_true", help="no CUDA graphs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    if given.policy == "stock":
        os.environ["SGLANG_PLUGINS"] = "none"
    from star_kv_sglang import cpu_mode

    if not cpu_mode.is_gpu_present():
        cpu_mode.enable()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace"
        arguments: dict[str, Any] = {
            "page_size": given.page_size,
            "max_total_tokens": given.pool,
            "max_running_requests": 32,
            "chunked_prefill_size": 4096,
            "schedule_conservativeness": 0.1,
        }
        arguments |= {"disable_cuda_graph": True} if given.eager else {}
        if given.policy == "star":
            config = {"trace_dir": str(trace), "shrink_before_evict": given.shrink}
            arguments |= {"kv_policy": "star", "kv_budget": BUDGET, "policy_config": config}
        started = time.monotonic()
        with running_engine(long_context_model(Path(folder)), **arguments) as engine:
            start_s = time.monotonic() - started
            loaded, alone, stats = play(engine, given)
            run_s = time.monotonic() - started - start_s
        difference = compare(loaded.turns, alone.turns, read_drops(trace) if trace.exists() else [])
    result = {
        "machine": asdict(describe("/".join(EXAMPLE_MODEL.parts[-2:]))),
        "policy": given.policy, "page_size": given.page_size, "shrink": given.shrink,
        "start_s": round(start_s, 1), "run_s": round(run_s, 1), "num_requests": loaded.num_sent,
        "ended": dict(loaded.done), "kinds": dict(loaded.kinds), "difference": asdict(difference), "stats": stats,
    }  # fmt: skip
    given.out.write_text(json.dumps(result, indent=1), encoding="utf-8")
    sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
