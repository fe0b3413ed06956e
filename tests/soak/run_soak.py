"""Many agents on one real server with a small pool, for a long time; then the same branches one by one.

    python -m tests.soak.run_soak --minutes 30 --out out/soak

Fails when a slot is lost (SGLang's own checks run after every step), when memory grows, when the server dies, or when
an answer differs from that of the serial replay. Compared are branches that nobody interrupted, up to the first
answer that another agent can have had a part in: one that was put back, or before which history was
evicted (fewer ``cached_tokens``) or cut again (``cuts``).
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import statistics
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import httpx
import psutil
import typer
from rich.console import Console

from star_kv_sglang.rollout.server import serving
from tests.engine.harness import STRICT_CHECKS, other_models
from tests.soak.agents import Branch, Mood, Server, play

MODEL = Path(__file__).resolve().parents[2] / "examples" / "tinygui" / "model"
SAMPLE_S = 5.0
MAX_GROWTH = 0.03
"""Growth of the scheduler's memory from the second to the last quarter of the run that counts as noise, beside
20 MiB."""
NOISE_BYTES = 20 * 2**20


@dataclass
class Report:
    """What came out.

    Attributes:
        minutes: Of load.
        num_agents: At the same time.
        branches: Branches that were played, by mood.
        num_answers: Answers in them.
        num_correct: Correct ones.
        num_retractions: Requests that were put back.
        num_evicted: Answers before which history had been evicted.
        num_compared: Answers that were compared with those of the serial replay.
        num_branches_compared: Branches that they belong to.
        different: Those that differ: seed, number, both texts.
        lost_slots: Slots in use that belong to nobody, at the end.
        rss: Seconds since the start and bytes of the scheduler process.
        stats: The policy's report after the load.
        problems: Why the run failed.
    """

    minutes: float
    num_agents: int
    branches: dict[str, int] = field(default_factory=lambda: {mood.value: 0 for mood in Mood})
    num_answers: int = 0
    num_correct: int = 0
    num_retractions: int = 0
    num_evicted: int = 0
    num_compared: int = 0
    num_branches_compared: int = 0
    different: list[tuple[int, int, str, str]] = field(default_factory=list)
    lost_slots: int = 0
    rss: list[tuple[float, int]] = field(default_factory=list)
    stats: dict[str, Any] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def add(self, branch: Branch) -> None:
        """A branch has ended."""
        self.branches[branch.mood.value] += 1
        self.num_answers += len(branch.replies)
        self.num_correct += branch.num_correct
        self.num_retractions += sum(reply.num_retractions for reply in branch.replies)

    def growth(self) -> tuple[float, float]:
        """Median memory of the second and of the last quarter of the run."""
        sizes = [size for _, size in self.rss]
        quarter = len(sizes) // 4
        return statistics.median(sizes[quarter : 2 * quarter]), statistics.median(sizes[3 * quarter :])


async def soak(url: str, report: Report, scheduler: psutil.Process, *, seed: int, replay_s: float) -> None:
    """Load, then replay; fills the report."""
    server = Server(url)
    played: list[Branch] = []
    deadline = time.monotonic() + report.minutes * 60
    numbers = iter(range(10**9))

    async def agent(number: int) -> None:
        rng = random.Random(f"{seed} agent {number}")
        while time.monotonic() < deadline:
            branch = await play(server, seed * 1_000_000 + next(numbers), rng, until=deadline)
            played.append(branch)
            report.add(branch)

    async def watch() -> None:
        started = time.monotonic()
        while True:
            report.rss.append((time.monotonic() - started, scheduler.memory_info().rss))
            await asyncio.sleep(SAMPLE_S)

    watching = asyncio.create_task(watch())
    async with asyncio.TaskGroup() as group:
        for number in range(report.num_agents):
            group.create_task(agent(number))
    watching.cancel()
    report.stats = await _idle(server)
    report.lost_slots = report.stats["num_used_pool_tokens"] - report.stats["num_live_tokens"]
    await server.flush()
    await _replay(server, played, report, replay_s)
    await server.close()


async def _idle(server: Server) -> dict[str, Any]:
    """The report once nothing runs: then all slots in use belong to the tree, unless some are lost."""
    await server.abort("")
    for _ in range(100):
        stats = await server.stats()
        if stats["num_used_pool_tokens"] == stats["num_live_tokens"]:
            break
        await asyncio.sleep(0.1)
    return stats


async def _replay(server: Server, played: list[Branch], report: Report, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    for branch in sorted(played, key=lambda branch: -len(branch.undisturbed)):
        before = branch.undisturbed
        if not before or time.monotonic() > deadline:
            break
        await server.flush()
        replay = await play(server, branch.seed, random.Random(0), Mood.CALM, num_questions=len(before))
        for number, (loaded, alone) in enumerate(zip(before, replay.replies, strict=True)):
            if loaded.cached < alone.cached:
                report.num_evicted += 1
                break
            if loaded.use["pruned"] != alone.use["pruned"]:
                break
            report.num_compared += 1
            report.num_branches_compared += number == 0
            if loaded.text != alone.text:
                report.different.append((branch.seed, number, loaded.text, alone.text))
                break


def judge(report: Report) -> None:
    """Write down why the run failed, if it did."""
    before, after = report.growth()
    if after > before * (1 + MAX_GROWTH) + NOISE_BYTES:
        report.problems.append(f"the scheduler's memory grew from {before / 2**20:.0f} to {after / 2**20:.0f} MiB")
    if report.lost_slots:
        report.problems.append(f"{report.lost_slots} slots belong to nobody")
    if report.different:
        report.problems.append(f"{len(report.different)} of {report.num_compared} answers differ from the replay's")
    if not report.num_compared:
        report.problems.append("no answer could be compared; give the pool more tokens")
    if not report.num_retractions:
        report.problems.append("no request was put back; give the pool fewer tokens")
    if report.stats["num_pruner_faults"]:
        report.problems.append(f"the pruner failed {report.stats['num_pruner_faults']} times; see the server's log")


def main(
    minutes: Annotated[float, typer.Option(help="Of load.")] = 30.0,
    agents: Annotated[int, typer.Option(help="At the same time.")] = 16,
    pool: Annotated[int, typer.Option(help="KV slots: few enough that requests must be put back.")] = 1200,
    budget: Annotated[float, typer.Option(help="Share of a branch's own visual tokens that stays.")] = 0.2,
    shrink: Annotated[bool, typer.Option(help="Shrink before evicting.")] = True,
    policy: Annotated[str, typer.Option(help="The policy.")] = "star",
    seed: Annotated[int, typer.Option()] = 1,
    out: Annotated[Path, typer.Option(help="Folder of the log and the report.")] = Path("out/soak"),
) -> None:
    """Run, report, and exit 1 when something is wrong."""
    console = Console()
    os.environ.update({**STRICT_CHECKS, "SGLANG_DISABLED_MODEL_ARCHS": other_models()})
    flags = [
        "--model-path", str(MODEL), "--max-total-tokens", str(pool), "--max-running-requests", str(agents),
        "--kv-policy", policy, "--kv-budget", str(budget), "--schedule-conservativeness", "0.05",
        "--kv-policy-config", json.dumps({"shrink_before_evict": shrink}), "--enable-metrics", "--skip-server-warmup",
    ]  # fmt: skip
    report = Report(minutes, agents)
    out.mkdir(parents=True, exist_ok=True)
    with serving(flags, out / "server.log") as url:
        scheduler = _scheduler()
        try:
            asyncio.run(soak(url, report, scheduler, seed=seed, replay_s=max(60.0, minutes * 15)))
            judge(report)
        except* httpx.HTTPError as errors:
            report.problems.append(f"the server failed: {errors.exceptions[0]!r}; see {out / 'server.log'}")
    (out / "report.json").write_text(json.dumps(asdict(report), indent=1), encoding="utf-8")
    console.print({name: value for name, value in asdict(report).items() if name != "rss"})
    if len(report.rss) >= 4:
        console.print("scheduler's memory, second and last quarter, MiB:", [round(x / 2**20) for x in report.growth()])
    if report.problems:
        raise typer.Exit(1)


def _scheduler() -> psutil.Process:
    """The scheduler among this process's descendants."""
    found = [one for one in psutil.Process().children(recursive=True) if "scheduler" in " ".join(one.cmdline())]
    if len(found) != 1:
        raise typer.BadParameter(f"expected one scheduler process, found {[one.cmdline() for one in found]}")
    return found[0]


if __name__ == "__main__":
    typer.run(main)
