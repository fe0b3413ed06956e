"""Many agents on one real server with a small pool, for a long time; then the same branches one by one.

    python -m tests.soak.run_soak --minutes 30 --out out/soak

Fails when a slot is lost (SGLang's own checks run after every step), when a process of the server holds more and more
memory, descriptors or screenshots, when the server dies, or when an answer differs from that of the serial replay.
Compared are branches that nobody interrupted, up to the first answer that another agent can have had a part in: one
that was put back, or before which history was evicted (fewer ``cached_tokens``) or cut again (``cuts``).
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import time
from dataclasses import asdict, fields
from pathlib import Path
from typing import Annotated, Any

import httpx
import psutil
import typer
from rich.console import Console
from rich.progress import Progress, TextColumn

from star_kv_sglang.tools.rollout.server import serving
from tests.engine.harness import STRICT_CHECKS, other_models
from tests.soak.agents import Branch, Mood, Server, play
from tests.soak.processes import Held, held_by, server_processes
from tests.soak.report import Report

MODEL = Path(__file__).resolve().parents[2] / "examples" / "tinygui" / "model"
SAMPLE_S = 5.0
MOST_REPLAY_S = 900.0
QUESTIONS_PER_TURN = 2
PREFILL_TOKENS = 512
"""Of one prefill batch: SGLang keeps a mask of its vision tower for each number of screenshots that were ever encoded
together, quadratic in that number."""
ENVIRONMENT = {
    # With more threads than free cores OpenMP's threads wait for each other, and the server is 100 times slower.
    "OMP_NUM_THREADS": "1",
    # SGLang keeps screenshots' embeddings, 100 MiB of them; less, so that this memory is full when watching begins.
    "SGLANG_VLM_CACHE_SIZE_MB": "16",
    # glibc otherwise raises these when a large block is freed, keeps freed tensors, and the memory seems to grow.
    "MALLOC_MMAP_THRESHOLD_": "131072",
    "MALLOC_TRIM_THRESHOLD_": "131072",
    "MALLOC_ARENA_MAX": "2",
    # After it has put a request back, SGLang admits few others for the next 10,000 steps; here for a hundred.
    "SGLANG_NEW_TOKEN_RATIO_DECAY_STEPS": "4",
}


class Soak:
    """One run: fills the report.

    Args:
        server: Under load.
        report: Its ``minutes`` and ``num_agents`` say what is to be done.
        processes: Of the server, by name; what they hold is watched.
        seed: Of all that the agents do.
        progress: Shows how far it is.
    """

    def __init__(
        self, server: Server, report: Report, processes: dict[str, psutil.Process], *, seed: int, progress: Progress
    ) -> None:
        self._server, self._report, self._processes = server, report, processes
        self._seed, self._progress = seed, progress
        self._played: list[Branch] = []

    async def load(self) -> None:
        """All agents, until the time is over and the last of them has its answer."""
        report, started = self._report, time.monotonic()
        deadline = started + report.minutes * 60
        numbers = iter(range(10**9))
        bar = self._progress.add_task("load", total=round(report.minutes * 60), detail="")

        async def agent(number: int) -> None:
            rng = random.Random(f"{self._seed} agent {number}")
            while time.monotonic() < deadline:
                branch = await play(self._server, self._seed * 1_000_000 + next(numbers), rng, until=deadline)
                self._played.append(branch)
                report.add(branch)

        async def watch() -> None:
            while True:
                seconds = time.monotonic() - started
                report.seconds.append(round(seconds, 1))
                for name, process in self._processes.items():
                    report.held[name].append(held_by(process))
                self._progress.update(bar, completed=min(seconds, report.minutes * 60), detail=_so_far(report))
                await asyncio.sleep(SAMPLE_S)

        watching = asyncio.create_task(watch())
        async with asyncio.TaskGroup() as group:
            for number in range(report.num_agents):
                group.create_task(agent(number))
        watching.cancel()
        report.load_s = time.monotonic() - started
        report.stats = await self._idle()
        report.lost_slots = report.stats["num_used_pool_tokens"] - report.stats["num_live_tokens"]
        report.image_cache = await self._server.image_cache()
        report.num_shared_bytes = held_by(self._processes["api"]).num_shared_bytes

    async def replay(self, num_answers: int, most_s: float) -> None:
        """Branches one by one, each on an empty tree, those with the longest comparable history first.

        Args:
            num_answers: Enough have been compared.
            most_s: Seconds after which the replay breaks off, which is a problem.
        """
        report, started = self._report, time.monotonic()
        bar = self._progress.add_task("replay", total=num_answers, detail="")
        for branch in sorted(self._played, key=lambda branch: (-len(branch.undisturbed), branch.seed)):
            report.replay_s = time.monotonic() - started
            if not branch.undisturbed or report.num_compared >= num_answers or report.replay_s > most_s:
                break
            await self._replay_one(branch)
            self._progress.update(bar, completed=report.num_compared, detail=f"{len(report.different)} differ")
        report.replay_s = time.monotonic() - started
        report.replay_is_complete = report.replay_s <= most_s
        await self._server.flush()
        stats = await self._idle()
        report.lost_slots_after_replay = stats["num_used_pool_tokens"]

    async def _replay_one(self, branch: Branch) -> None:
        report, before = self._report, branch.undisturbed
        await self._server.flush()
        alone = await play(self._server, branch.seed, random.Random(0), Mood.CALM, num_questions=len(before))
        for number, (loaded, reply) in enumerate(zip(before, alone.replies, strict=True)):
            if loaded.cached < reply.cached:
                report.num_evicted += 1
                break
            if loaded.use["pruned"] != reply.use["pruned"]:
                report.num_pruned_otherwise += 1
                break
            report.num_compared += 1
            report.num_branches_compared += number == 0
            report.num_late_compared += number >= QUESTIONS_PER_TURN
            if loaded.text != reply.text:
                report.different.append((branch.seed, number, loaded.text, reply.text))
                break

    async def _idle(self) -> dict[str, Any]:
        """The policy's report once nothing runs: all slots in use belong to the tree, unless some are lost."""
        await self._server.abort("")
        for _ in range(100):
            stats = await self._server.stats()
            if stats["num_used_pool_tokens"] == stats["num_live_tokens"]:
                break
            await asyncio.sleep(0.1)
        return stats


def _so_far(report: Report) -> str:
    mib = report.held["scheduler"][-1].num_bytes // 2**20
    return f"{report.num_answers} answers, {report.num_retractions} put back, {mib} MiB"


def main(
    minutes: Annotated[float, typer.Option(help="Of load.")] = 30.0,
    agents: Annotated[int, typer.Option(help="At the same time.")] = 16,
    pool: Annotated[int, typer.Option(help="KV slots: few enough that requests must be put back.")] = 2400,
    budget: Annotated[float, typer.Option(help="Share of a branch's own visual tokens that stays.")] = 0.2,
    shrink: Annotated[bool, typer.Option(help="Shrink before evicting.")] = True,
    policy: Annotated[str, typer.Option(help="The policy.")] = "star",
    image_cache: Annotated[int, typer.Option(help="MiB of screenshots: few enough that some are evicted.")] = 64,
    answers: Annotated[int, typer.Option(help="Enough answers compared with a serial replay.")] = 150,
    seed: Annotated[int, typer.Option(help="Of all that the agents do.")] = 1,
    out: Annotated[Path, typer.Option(help="Folder of the log and the report.")] = Path("out/soak"),
) -> None:
    """Run, report, and exit 1 when something is wrong."""
    os.environ.update({**STRICT_CHECKS, **ENVIRONMENT, "SGLANG_DISABLED_MODEL_ARCHS": other_models()})
    flags = [
        "--model-path", str(MODEL), "--dtype", "float32", "--max-total-tokens", str(pool),
        "--max-running-requests", str(agents), "--max-prefill-tokens", str(PREFILL_TOKENS), "--kv-policy", policy,
        "--kv-budget", str(budget), "--schedule-conservativeness", "0.05", "--kv-policy-config",
        json.dumps({"shrink_before_evict": shrink}), "--enable-metrics", "--skip-server-warmup",
        "--kv-image-cache-mb", str(image_cache),
    ]  # fmt: skip
    report = Report(minutes, agents, most_shared_bytes=image_cache * 2**20)
    out.mkdir(parents=True, exist_ok=True)
    with serving(flags, out / "server.log") as url:
        try:
            asyncio.run(_run(url, report, seed, answers))
            report.judge()
        except* httpx.HTTPError as errors:
            report.problems.append(f"the server failed: {errors.exceptions[0]!r}; see {out / 'server.log'}")
    (out / "report.json").write_text(json.dumps(asdict(report), indent=1), encoding="utf-8")
    typer.echo(json.dumps(summary(report), indent=1))
    if report.problems:
        raise typer.Exit(1)


async def _run(url: str, report: Report, seed: int, num_answers: int) -> None:
    server = Server(url)
    columns = (*Progress.get_default_columns(), TextColumn("{task.fields[detail]}"))
    with Progress(*columns, console=Console(stderr=True)) as progress:
        run = Soak(server, report, server_processes(), seed=seed, progress=progress)
        await run.load()
        await run.replay(num_answers, most_s=MOST_REPLAY_S)
    await server.close()


def summary(report: Report) -> dict[str, Any]:
    """The report without its series, with the medians of their quarters."""
    short = {name: value for name, value in asdict(report).items() if name not in ("held", "seconds")}
    whats = [field.name for field in fields(Held)]
    held = {
        name: {what: report.medians(name, what) for what in whats} for name, series in report.held.items() if series
    }
    return {**short, "held": held, "passed": not report.problems}


if __name__ == "__main__":
    typer.run(main)
